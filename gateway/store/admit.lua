-- One admission: check every dimension, then charge all of them or none.
--
-- KEYS[1]    the key's record, a hash whose field "version" rises with every change
-- KEYS[i+1]  dimension i: a string (rate: its theoretical arrival time) or a sorted set (lease: call id -> deadline)
-- ARGV[1]    call id        ARGV[2]  the version the gateway decided on
-- ARGV[4i-1 .. 4i+2]        dimension i: kind ("rate" or "lease"), limit, window in microseconds, amount
--
-- Returns {status, denied, retry_after, remaining 1, reset 1, remaining 2, ...}, times in microseconds;
-- status 0 granted, 1 denied by dimension `denied` (counted from 1), 2 the version is not the stored one.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if redis.call('HGET', KEYS[1], 'version') ~= ARGV[2] then
  return {2, 0, 0}
end

local answer, charge = {0, 0, 0}, {}
local denied, wait = 0, 0

local function rate(key, limit, window, amount)
  local cost = math.ceil(window / limit)
  local whole = cost * limit
  local tat = tonumber(redis.call('GET', key) or 0)
  tat = math.min(math.max(tat, now), now + whole)
  local after = tat + cost * amount
  local over = after - now - whole
  if over > 0 then
    return over, math.floor((now + whole - tat) / cost), tat - now
  end
  return 0, math.floor((now + whole - after) / cost), after - now, function()
    redis.call('SET', key, string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000) + 1000)
  end
end

local function lease(key, limit, window)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
  local held = redis.call('ZCARD', key)
  if held >= limit then
    return 1000000, 0, 0
  end
  return 0, limit - held - 1, 0, function()
    redis.call('ZADD', key, string.format('%.0f', now + window), ARGV[1])
    redis.call('PEXPIRE', key, math.ceil(window / 500))
  end
end

for i = 1, #KEYS - 1 do
  local at = 4 * i - 1
  local limit, window, amount = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  local over, remaining, reset, commit
  if ARGV[at] == 'rate' then
    over, remaining, reset, commit = rate(KEYS[i + 1], limit, window, amount)
  else
    over, remaining, reset, commit = lease(KEYS[i + 1], limit, window)
  end
  if over > wait then
    denied, wait = i, over
  end
  charge[i] = commit
  answer[2 + 2 * i], answer[3 + 2 * i] = remaining, reset
end

if denied > 0 then
  answer[1], answer[2], answer[3] = 1, denied, wait
else
  for i = 1, #KEYS - 1 do
    charge[i]()
  end
end
return answer
