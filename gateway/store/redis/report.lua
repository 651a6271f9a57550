-- Write what a worker reports of its targets, and drop the reports of workers that have died.
--
-- KEYS[1]  hash of reports by boot id      KEYS[2]  sorted set: boot id -> when it reported, in microseconds
-- ARGV[1]  boot id      ARGV[2]  the report      ARGV[3]  how long a report is kept, in microseconds
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], string.format('%.0f', now), ARGV[1])
for _, boot in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - ARGV[3]))) do
  redis.call('HDEL', KEYS[1], boot)
  redis.call('ZREM', KEYS[2], boot)
end
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, 60000)
end
return 1
