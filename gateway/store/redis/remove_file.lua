-- Forget a stored file. KEYS: as of add_file. ARGV: id, bytes, tenant, its name among what is to be forgotten
redis.call('ZREM', KEYS[3], ARGV[4])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('HINCRBY', KEYS[2], ARGV[3], -ARGV[2]) <= 0 then redis.call('HDEL', KEYS[2], ARGV[3]) end
return 1
