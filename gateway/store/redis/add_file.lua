-- Note a stored file, if its tenant may have it; again changes nothing.
--
-- KEYS: the tenant's files by id, bytes stored by tenant, what is to be forgotten and when
-- ARGV: id, file, bytes, tenant, when it is forgotten, its name there, the most files, the most bytes (-1: any)
--
-- Returns nothing, or the limit that is reached.
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return false end
if tonumber(ARGV[7]) >= 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[7]) then return 'files' end
local stored = tonumber(redis.call('HGET', KEYS[2], ARGV[4]) or 0)
if tonumber(ARGV[8]) >= 0 and stored + tonumber(ARGV[3]) > tonumber(ARGV[8]) then return 'bytes' end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('HINCRBY', KEYS[2], ARGV[4], ARGV[3])
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[6])
return false
