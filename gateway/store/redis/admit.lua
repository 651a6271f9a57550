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
-- ARGV[..]     three for each dimension: kind, limit, milliseconds that a rate is kept. Kinds: rate; debt (a rate that
--              may be overdrawn by up to ten windows, when a call used more than it reserved); lease; day, week and
--              month are budgets. A rate is counted in microseconds: its limit is its window
-- ARGV[..]     call id, then what is asked of each dimension; all before it is the same for each call of a key
--
-- Returns {status, denied, retry_after, now, level 1, reset 1, level 2, ...}, times in microseconds; status 0 granted,
-- 1 denied by dimension `denied` (from 1), 2 a version differs, 3 a version is missing, 4 budgets are. The level of a
-- rate is how far it is from being whole again, that of a lease or a budget what is left of it, below 0 for a budget
-- of which all is spent.
--
-- Each call of Redis costs a microsecond here, and each number that becomes a text half of one.
local KEYS, ARGV, ask, tonumber = KEYS, ARGV, redis.call, tonumber
local format = string.format
local clock = redis.call('TIME')
local second = tonumber(clock[1])
local now = second * 1000000 + clock[2]
local records = tonumber(ARGV[1])
local first = 2 + records
local count = #KEYS - first
local last = first + 3 * count + 1
local deadline = format('%.0f', now + ARGV[2])
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
local function drop_dead(key)
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

-- What calls have reserved of a budget, without those that have expired; where they do not fit, without the dead either.
local function reserved(key, open, room)
  local all = key .. ':open'
  for _, member in ipairs(ask('ZRANGEBYSCORE', all, '-inf', now, 'LIMIT', 0, 1000)) do
    ask('ZREM', all, member)
    open = open - string.match(member, '%d+$')
  end
  if open > room then
    open = open - drop_dead(all)
  end
  ask('HSET', key, 'o', open, 'x', ask('ZRANGE', all, 0, 0, 'WITHSCORES')[2] or deadline)
  return open
end

local denied, wait, levels, budgets = 0, 0, {}, {}
for i = 1, count do
  local key, at = KEYS[first + i], first + 3 * i
  local kind, limit, amount, level, over = ARGV[at - 2], tonumber(ARGV[at - 1]), tonumber(ARGV[last + i]), 0, 0
  if kind == 'rate' or kind == 'debt' then
    local stored = known[1 + records + i]
    if stored then
      level = stored - now
      if level < 0 then
        level = 0
      elseif level > limit then
        -- Further ahead is a clock that went back, or a debt that is forgiven.
        level = math.min(level, kind == 'debt' and 10 * limit or limit)
      end
    end
    over = level + amount - limit
  elseif kind == 'lease' then
    level = ask('ZCOUNT', key, now + 1, '+inf')
    if level >= limit then
      drop_dead(key)
      level = ask('ZCOUNT', key, now + 1, '+inf')
      over = level >= limit and SECOND or 0
    end
  elseif not known[1] then
    return {4, 0, 0, now}
  else
    local number, ends = period(kind, second)
    local found = ask('HMGET', key, 'w', 's', 'o', 'x')
    local settled, open = 0, nil
    if tonumber(found[1]) == number then
      settled, open = tonumber(found[2]), tonumber(found[3])
      if open > 0 and (settled + open + amount > limit or tonumber(found[4] or 0) <= now) then
        open = reserved(key, open, limit - settled - amount)
      end
    end
    level = limit - settled - (open or 0)
    budgets[i] = {number, ends * SECOND - now, open}
    if amount > level then
      -- What others have only reserved may come back at any time.
      over = settled + amount > limit and ends * SECOND - now or SECOND
      level = settled >= limit and -1 or math.max(0, level)
    end
  end
  levels[i] = level
  if over > wait then
    denied, wait = i, over
  end
end

local granted = denied == 0
local answer = {granted and 0 or 1, denied, wait, now}
for i = 1, count do
  local key, at, level, reset = KEYS[first + i], first + 3 * i, levels[i], 0
  local kind, amount = ARGV[at - 2], ARGV[last + i]
  if kind == 'rate' or kind == 'debt' then
    if granted then
      level = level + amount
      ask('SET', key, format('%.0f', now + level), 'PX', ARGV[at])
    end
  elseif kind == 'lease' then
    if granted then
      ask('ZADD', key, deadline, ARGV[last])
      if level == 0 then -- and again whenever the leases are renewed
        ask('ZREMRANGEBYSCORE', key, '-inf', now)
        ask('PEXPIRE', key, '3600000')
      end
      level = level + 1
    end
    level = ARGV[at - 1] - level
  else
    local number, open
    number, reset, open = unpack(budgets[i])
    if granted then
      local all = key .. ':open'
      level = level - amount
      if open then
        ask('HINCRBY', key, 'o', amount)
      else
        ask('DEL', all)
        ask('HSET', key, 'w', number, 's', '0', 'o', amount, 'x', deadline)
        ask('PEXPIRE', key, KEPT)
      end
      ask('ZADD', all, deadline, ARGV[last] .. ' ' .. amount)
      if not open or open == 0 then
        ask('PEXPIRE', all, KEPT)
      end
    end
  end
  answer[3 + 2 * i], answer[4 + 2 * i] = level, reset
end
return answer
