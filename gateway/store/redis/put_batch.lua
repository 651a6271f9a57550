-- Write a batch whose version is one above the stored one, and tell the others.
--
-- KEYS: the tenant's batches by id, all batches by age, those that have not ended, the tenant's of these,
--       what is to be forgotten and when
-- ARGV: id, version, batch, its name in all sets, when it was made, 1 if it has ended, when it is forgotten,
--       the most of the tenant that may not have ended (-1: any), channel, what to say there
--
-- Returns 1; 0 if the version is not the next one; -1 if the tenant may have no more.
local stored = redis.call('HGET', KEYS[1], ARGV[1])
local version = stored and tonumber(string.match(stored, '^%d+')) or 0
if version + 1 ~= tonumber(ARGV[2]) then return 0 end
if version == 0 and tonumber(ARGV[8]) >= 0 and redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[8]) then return -1 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[4])
for i = 3, 4 do
  if ARGV[6] == '1' then
    redis.call('SREM', KEYS[i], ARGV[4])
  else
    redis.call('SADD', KEYS[i], ARGV[4])
  end
end
redis.call('ZADD', KEYS[5], ARGV[7], 'batch:' .. ARGV[4])
redis.call('PUBLISH', ARGV[9], ARGV[10])
return 1
