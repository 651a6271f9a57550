-- The end of a granted call: what each dimension reserved becomes what it really took. Once for each call.
--
-- KEYS[1]    marks the call as settled
-- KEYS[1+i]  dimension i, as in admit.lua
-- ARGV[1]    call id      ARGV[2]  when it was granted, in microseconds: its budgets' periods are those of then
-- ARGV[..]   five for each dimension: kind, limit, window in microseconds or period, units reserved, units used
--
-- Returns 1, or 0 if the call had been settled before.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local call, granted = ARGV[1], tonumber(ARGV[2])

-- The gateway deletes the mark when it has heard the answer; if it never does, it may ask again for an hour.
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', 3600000) then
  return 0
end

local function text(number)
  return string.format('%.0f', number)
end

local function rate(key, limit, window, reserved, used)
  local cost = math.ceil(window / limit)
  local tat = math.max(tonumber(redis.call('GET', key) or 0), now)
  local moved
  if used >= reserved then
    moved = math.min(tat + cost * (used - reserved), math.max(tat, now + 10 * cost * limit))
  else
    -- What has leaked away since the grant was used by time: giving it back too would admit it twice.
    local unleaked = math.max(0, reserved * cost - math.max(0, now - granted))
    moved = math.max(now, tat - math.min((reserved - used) * cost, unleaked))
  end
  if moved ~= tat then
    redis.call('SET', key, text(moved), 'PX', math.ceil((moved - now) / 1000) + 1000)
  end
end

local function budget(key, kind, reserved, used)
  if redis.call('ZREM', key .. ':open', call .. ' ' .. text(reserved)) == 1 then
    redis.call('HINCRBY', key, 'o', text(0 - reserved))
  end
  local stored = tonumber(redis.call('HGET', key, 'w') or -1)
  local number = period(kind, granted / 1000000)
  if stored == number then
    redis.call('HINCRBY', key, 's', text(used))
  elseif stored < number and period(kind, clock[1]) == number then
    redis.call('HSET', key, 'w', number, 's', text(used), 'o', 0)
    redis.call('PEXPIRE', key, 40 * 86400000)
  end
end

for i = 1, #KEYS - 1 do
  local key, at = KEYS[1 + i], 5 * i - 2
  local reserved, used = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if ARGV[at] == 'rate' or ARGV[at] == 'debt' then
    rate(key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), reserved, used)
  elseif ARGV[at] == 'lease' then
    redis.call('ZREM', key, call)
  else
    budget(key, ARGV[at + 2], reserved, used)
  end
end
return 1
