-- The end of a granted call: what each dimension reserved becomes what it really took. Once for each call.
--
-- KEYS[i]      dimension i, as in admit.lua; those of which a call used what it reserved may be left out
-- KEYS[last]   marks the call as settled
-- ARGV[..]     three for each dimension, as in admit.lua: kind, limit, microseconds that a unit costs
-- ARGV[..]     call id, when it was granted in microseconds (its budgets' periods are those of then), and two for each
--              dimension: units reserved, units used
--
-- Returns 1, or 0 if the call had been settled before.
local ask, max, min = redis.call, math.max, math.min
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local count = #KEYS - 1
local last = 3 * count + 1
local call, granted = ARGV[last], tonumber(ARGV[last + 1])

-- The gateway deletes the mark when it has heard the answer; if it never does, it may ask again for an hour.
if not ask('SET', KEYS[#KEYS], '1', 'NX', 'PX', '3600000') then
  return 0
end

local function rate(key, limit, cost, reserved, used)
  local tat = max(tonumber(ask('GET', key)) or 0, now)
  local moved
  if used >= reserved then
    moved = min(tat + cost * (used - reserved), max(tat, now + 10 * cost * limit))
  else
    -- What has leaked away since the grant was used by time: giving it back too would admit it twice.
    local unleaked = max(0, reserved * cost - max(0, now - granted))
    moved = max(now, tat - min((reserved - used) * cost, unleaked))
  end
  if moved ~= tat then
    ask('SET', key, string.format('%.0f', moved), 'PX', math.ceil((moved - now) / 1000) + 1000)
  end
end

local function budget(key, kind, reserved, used)
  local freed = ask('ZREM', key .. ':open', call .. ' ' .. reserved) * reserved
  local found = ask('HMGET', key, 'w', 's', 'o')
  local stored, number = tonumber(found[1]) or -1, period(kind, granted / 1000000)
  if stored == number then
    ask('HSET', key, 's', found[2] + used, 'o', found[3] - freed)
  elseif stored < number and period(kind, clock[1]) == number then
    ask('HSET', key, 'w', number, 's', used, 'o', 0)
    ask('PEXPIRE', key, '3456000000')
  elseif freed > 0 then
    ask('HINCRBY', key, 'o', -freed)
  end
end

for i = 1, count do
  local kind, at = ARGV[3 * i - 2], last + 2 * i
  if kind == 'rate' or kind == 'debt' then
    rate(KEYS[i], ARGV[3 * i - 1], ARGV[3 * i], tonumber(ARGV[at]), tonumber(ARGV[at + 1]))
  elseif kind == 'lease' then
    ask('ZREM', KEYS[i], call)
  else
    budget(KEYS[i], kind, ARGV[at], ARGV[at + 1])
  end
end
return 1
