-- The end of a granted call: what each dimension reserved becomes what it really took. Once for each call.
--
-- KEYS[i]      dimension i, as in admit.lua; those of which a call used what it reserved may be left out
-- KEYS[last]   marks the call as settled
-- ARGV[..]     two for each dimension, as in admit.lua: kind, limit
-- ARGV[..]     call id, when it was granted in microseconds (its budgets' periods are those of then), and two for each
--              dimension: what was reserved, what was used
--
-- Returns 1, or 0 if the call had been settled before.
local KEYS, ARGV, ask, tonumber = KEYS, ARGV, redis.call, tonumber
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local count = #KEYS - 1
local last = 2 * count + 1
local call, granted = ARGV[last], tonumber(ARGV[last + 1])

-- The gateway deletes the mark when it has heard the answer; if it never does, it may ask again for an hour.
if not ask('SET', KEYS[#KEYS], '1', 'NX', 'PX', '3600000') then
  return 0
end

for i = 1, count do
  local key, kind, at = KEYS[i], ARGV[2 * i - 1], last + 2 * i
  if kind == 'lease' then
    ask('ZREM', key, call)
  elseif kind == 'rate' or kind == 'debt' then
    local reserved, used = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local tat = tonumber(ask('GET', key) or 0)
    local moved
    if tat < now then
      tat = now
    end
    if used >= reserved then
      moved = math.min(tat + used - reserved, math.max(tat, now + 10 * ARGV[2 * i]))
    else
      -- What has leaked away since the grant was used by time: giving it back too would admit it twice.
      local unleaked = math.max(0, reserved - math.max(0, now - granted))
      moved = math.max(now, tat - math.min(reserved - used, unleaked))
    end
    if moved ~= tat then
      ask('SET', key, string.format('%.0f', moved), 'PX', math.ceil((moved - now) / 1000) + 1000)
    end
  else
    local reserved, used = ARGV[at], ARGV[at + 1]
    local freed = ask('ZREM', key .. ':open', call .. ' ' .. reserved) * reserved
    local found = ask('HMGET', key, 'w', 's', 'o')
    local stored, number = tonumber(found[1]) or -1, period(kind, granted / 1000000)
    if stored == number then
      ask('HSET', key, 's', found[2] + used, 'o', found[3] - freed)
    elseif stored < number and period(kind, clock[1]) == number then
      ask('HSET', key, 'w', number, 's', used, 'o', '0')
      ask('PEXPIRE', key, '3456000000')
    elseif freed > 0 then
      ask('HINCRBY', key, 'o', -freed)
    end
  end
end
return 1
