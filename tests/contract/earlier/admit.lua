-- One admission: check every dimension, then charge all of them or none.
--
-- KEYS[1]      sorted set of workers known to be dead: boot id -> when to forget it
-- KEYS[2]      exists while the budgets here are complete (after a loss they are rebuilt from the ledger first)
-- KEYS[3..2+R] version of record 1..R; absent: never written here
-- KEYS[2+R+i]  dimension i: a string (rate: its theoretical arrival time), a sorted set (lease: call id -> deadline)
--              or a hash (budget: w period number, s settled, o sum of open reservations; KEY:open holds these, as
--              "<call id> <units>" -> deadline)
-- ARGV[1]      call id      ARGV[2]  R      ARGV[3]  lease time in microseconds
-- ARGV[4..3+R] the versions the gateway decided on, 0: there is no such record
-- ARGV[..]     four for each dimension: kind (rate, debt, lease, budget), limit, window in microseconds or period,
--              units; debt is a rate that may be overdrawn by up to ten windows, when a call used more than it reserved
--
-- Returns {status, denied, retry_after, now, remaining 1, reset 1, remaining 2, ...}, times in microseconds; status
-- 0 granted, 1 denied by dimension `denied` (from 1), 2 a version differs, 3 a version is missing, 4 budgets are.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local call, records, hold = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local SECOND = 1000000

local names = {KEYS[2]}
for r = 1, records do
  names[1 + r] = KEYS[2 + r]
end
local known = redis.call('MGET', unpack(names))
for r = 1, records do
  local stored, wanted = known[1 + r], ARGV[3 + r]
  if stored ~= wanted then
    if stored then
      return {2, 0, 0, now}
    elseif wanted ~= '0' then
      return {3, 0, 0, now}
    end
  end
end

local function text(number)
  return string.format('%.0f', number)
end

-- Drop the members of workers that have died before their leases expired; true if there were any.
local function bury(key, each)
  local dead = redis.call('ZRANGEBYSCORE', KEYS[1], text(now), '+inf')
  local found = false
  for _, boot in ipairs(dead) do
    for _, member in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      if string.find(member, boot, 1, true) then
        redis.call('ZREM', key, member)
        found = true
        if each then
          each(member)
        end
      end
    end
  end
  return found
end

local function rate(key, limit, window, amount, most)
  local cost = math.ceil(window / limit)
  local whole = cost * limit
  local tat = math.max(tonumber(redis.call('GET', key) or 0), now)
  tat = math.min(tat, now + whole * most) -- further ahead is a clock that went back, or a debt that is forgiven
  local after = tat + cost * amount
  local over = after - now - whole
  local before = {math.max(0, math.floor((now + whole - tat) / cost)), tat - now}
  if over > 0 then
    return over, before
  end
  return 0, before, {math.floor((now + whole - after) / cost), after - now}, function()
    redis.call('SET', key, text(after), 'PX', math.ceil((after - now) / 1000) + 1000)
  end
end

local function lease(key, limit)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
  local held = redis.call('ZCARD', key)
  if held >= limit and bury(key) then
    held = redis.call('ZCARD', key)
  end
  if held >= limit then
    return SECOND, {0, 0}
  end
  return 0, {limit - held, 0}, {limit - held - 1, 0}, function()
    redis.call('ZADD', key, text(now + hold), call)
    if held == 0 then -- and again whenever the leases are renewed
      redis.call('PEXPIRE', key, 3600000)
    end
  end
end

local function budget(key, limit, kind, amount)
  local number, ends = period(kind, clock[1])
  local found = redis.call('HMGET', key, 'w', 's', 'o')
  local settled, open = tonumber(found[2] or 0), tonumber(found[3] or 0)
  local fresh = tonumber(found[1] or -1) ~= number
  if fresh then
    settled, open = 0, 0
  end
  local function free(member)
    open = open - tonumber(string.match(member, '%d+$'))
    redis.call('HSET', key, 'o', text(open))
  end
  if open > 0 then
    local expired = redis.call('ZRANGEBYSCORE', key .. ':open', '-inf', text(now), 'LIMIT', 0, 1000)
    for _, member in ipairs(expired) do
      redis.call('ZREM', key .. ':open', member)
      free(member)
    end
    if settled + open + amount > limit then
      bury(key .. ':open', free)
    end
  end
  local left = limit - settled - open
  local reset = ends * SECOND - now
  if amount > left then
    -- What others have only reserved may come back at any time.
    return settled + amount > limit and reset or SECOND, {math.max(0, left), reset}
  end
  return 0, {left, reset}, {left - amount, reset}, function()
    if fresh then
      redis.call('DEL', key .. ':open')
      redis.call('HSET', key, 'w', number, 's', 0, 'o', text(amount))
      redis.call('PEXPIRE', key, 40 * 86400000)
    else
      redis.call('HINCRBY', key, 'o', text(amount))
    end
    redis.call('ZADD', key .. ':open', text(now + hold), call .. ' ' .. text(amount))
    if open == 0 then
      redis.call('PEXPIRE', key .. ':open', 40 * 86400000)
    end
  end
end

local charge, before, after, denied, wait = {}, {}, {}, 0, 0
for i = 1, #KEYS - 2 - records do
  local key, at = KEYS[2 + records + i], 4 * i + records
  local kind, limit, window, amount = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  local over
  if kind == 'rate' or kind == 'debt' then
    local most = kind == 'debt' and 10 or 1
    over, before[i], after[i], charge[i] = rate(key, limit, tonumber(window), amount, most)
  elseif kind == 'lease' then
    over, before[i], after[i], charge[i] = lease(key, limit)
  elseif not known[1] then
    return {4, 0, 0, now}
  else
    over, before[i], after[i], charge[i] = budget(key, limit, window, amount)
  end
  if over > wait then
    denied, wait = i, over
  end
end

local answer = {denied > 0 and 1 or 0, denied, wait, now}
for i, standing in ipairs(denied > 0 and before or after) do
  if denied == 0 then
    charge[i]()
  end
  answer[3 + 2 * i], answer[4 + 2 * i] = standing[1], standing[2]
end
return answer
