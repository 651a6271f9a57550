-- Write a record whose version is one above the stored one, with its place in the index and its audit entry.
--
-- KEYS: record hash, index, audit stream, epoch (exists once anything was ever written here), version string
-- ARGV: id, version, record, score in the index, audit entry or '', channel, name of the record, entries of the log
--
-- Returns 1, or 0 if the version is not the next one.
local stored = tonumber(redis.call('HGET', KEYS[1], 'version') or 0)
if stored + 1 ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[1])
redis.call('SET', KEYS[5], ARGV[2])
redis.call('SET', KEYS[4], '1', 'NX')
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[8], '*', 'entry', ARGV[5])
end
redis.call('PUBLISH', ARGV[6], ARGV[7])
return 1
