-- One admission: check every dimension, then charge all of them or none.
--
-- KEYS[1]      sorted set of workers known to be dead: boot id -> when to forget it
-- KEYS[2]      exists while the budgets here are complete (after a loss they are rebuilt from the ledger first)
-- KEYS[3..2+R] version of record 1..R; absent: never written here
-- KEYS[2+R+i]  dimension i: a string (rate: its theoretical arrival time), a sorted set (lease: call id -> deadline)
--              or a hash (budget: w period number, s settled, o sum of open reservations, x no reservation expires
--              before this; KEY:open holds the reservations, as "<call id> <units>" -> deadline)
-- ARGV[1]      R      ARGV[2]  lease time in microseconds
-- ARGV[3..2+R] the versions the gateway decided on, 0: there is no such record
-- ARGV[..]     three for each dimension: kind (rate, debt, lease, and budgets by day, week, month), limit, and of a rate
--              the microseconds that a unit costs; debt is a rate that may be overdrawn by up to ten windows, when a
--              call used more than it reserved
-- ARGV[..]     call id, then the units of each dimension: what comes before is the same for all calls of a key
--
-- Returns {status, denied, retry_after, now, remaining 1, reset 1, remaining 2, ...}, times in microseconds; status
-- 0 granted, 1 denied by dimension `denied` (from 1), 2 a version differs, 3 a version is missing, 4 budgets are.
--
-- Each call of Redis costs a microsecond here, and each number that becomes a text half of one.
local ask, max, min = redis.call, math.max, math.min
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local now = second * 1000000 + clock[2]
local records = tonumber(ARGV[1])
local first = 2 + records
local count = #KEYS - first
local last = first + 3 * count + 1
local deadline = string.format('%.0f', now + ARGV[2])
local SECOND = 1000000
local KEPT = '3456000000' -- 40 days in milliseconds, longer than any period

local known = ask('MGET', unpack(KEYS, 2)) -- nothing of what is no string
for r = 1, records do
  local stored, wanted = known[1 + r], ARGV[2 + r]
  if stored ~= wanted then
    if stored then
      return {2, 0, 0, now}
    elseif wanted ~= '0' then
      return {3, 0, 0, now}
    end
  end
end

-- Drop the members of workers that have died before their leases expired; returns the units these had reserved.
local function bury(key)
  local units = 0
  for _, boot in ipairs(ask('ZRANGEBYSCORE', KEYS[1], now, '+inf')) do
    for _, member in ipairs(ask('ZRANGE', key, 0, -1)) do
      if string.find(member, boot, 1, true) then
        ask('ZREM', key, member)
        units = units + (string.match(member, ' (%d+)$') or 0)
      end
    end
  end
  return units
end

-- Drop reservations that have expired; returns their units, and the time before which no other one will.
local function expire(key)
  local units = 0
  for _, member in ipairs(ask('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, 1000)) do
    ask('ZREM', key, member)
    units = units + string.match(member, '%d+$')
  end
  return units, ask('ZRANGE', key, 0, 0, 'WITHSCORES')[2] or deadline
end

-- What is settled and what is reserved of a budget in this period, where nothing is: 0 and nil.
local function spending(key, number, limit, amount)
  local found = ask('HMGET', key, 'w', 's', 'o', 'x')
  if tonumber(found[1]) ~= number then
    return 0, nil
  end
  local settled, open = tonumber(found[2]), tonumber(found[3])
  if open > 0 and (settled + open + amount > limit or tonumber(found[4] or 0) <= now) then
    local units, until_then = expire(key .. ':open')
    open = open - units
    if settled + open + amount > limit then
      open = open - bury(key .. ':open')
    end
    ask('HSET', key, 'o', open, 'x', until_then)
  end
  return settled, open
end

local denied, wait = 0, 0
local levels, budgets = {}, {}
for i = 1, count do
  local key, at = KEYS[first + i], first + 3 * i
  local kind, limit, amount = ARGV[at - 2], tonumber(ARGV[at - 1]), tonumber(ARGV[last + i])
  local over = 0
  if kind == 'rate' or kind == 'debt' then
    local cost = tonumber(ARGV[at])
    local whole = cost * limit
    local most = kind == 'debt' and 10 * whole or whole
    -- Further ahead is a clock that went back, or a debt that is forgiven.
    local ahead = min(max((tonumber(known[1 + records + i]) or 0) - now, 0), most)
    levels[i] = ahead
    over = ahead + cost * amount - whole
  elseif kind == 'lease' then
    local held = ask('ZCOUNT', key, now + 1, '+inf')
    if held >= limit then
      bury(key)
      held = ask('ZCOUNT', key, now + 1, '+inf')
    end
    levels[i] = held
    over = held >= limit and SECOND or 0
  elseif not known[1] then
    return {4, 0, 0, now}
  else
    local number, ends = period(kind, second)
    local reset = ends * SECOND - now
    local settled, open = spending(key, number, limit, amount)
    levels[i] = limit - settled - (open or 0)
    budgets[i] = {number, reset, open}
    if amount > levels[i] then
      -- What others have only reserved may come back at any time.
      over = settled + amount > limit and reset or SECOND
    end
  end
  if over > wait then
    denied, wait = i, over
  end
end

local answer = {denied > 0 and 1 or 0, denied, wait, now}
for i = 1, count do
  local key, at, left, reset = KEYS[first + i], first + 3 * i, levels[i], 0
  local kind, amount = ARGV[at - 2], ARGV[last + i]
  if kind == 'rate' or kind == 'debt' then
    local cost = tonumber(ARGV[at])
    local whole = cost * ARGV[at - 1]
    reset = left
    if denied == 0 then
      reset = left + cost * amount
      ask('SET', key, string.format('%.0f', now + reset), 'PX', math.ceil(reset / 1000) + 1000)
    end
    left = math.floor((whole - reset) / cost)
  elseif kind == 'lease' then
    left = ARGV[at - 1] - left
    if denied == 0 then
      left = left - 1
      ask('ZADD', key, deadline, ARGV[last])
      if levels[i] == 0 then -- and again whenever the leases are renewed
        ask('ZREMRANGEBYSCORE', key, '-inf', now)
        ask('PEXPIRE', key, 3600000)
      end
    end
  else
    local number, open
    number, reset, open = unpack(budgets[i])
    if denied == 0 then
      left = left - amount
      if not open then
        ask('DEL', key .. ':open')
        ask('HSET', key, 'w', number, 's', 0, 'o', amount, 'x', deadline)
        ask('PEXPIRE', key, KEPT)
      else
        ask('HINCRBY', key, 'o', amount)
      end
      ask('ZADD', key .. ':open', deadline, ARGV[last] .. ' ' .. amount)
      if not open or open == 0 then
        ask('PEXPIRE', key .. ':open', KEPT)
      end
    end
  end
  answer[3 + 2 * i], answer[4 + 2 * i] = max(left, 0), reset
end
return answer
