-- Add pieces of work to a batch's stream. An id that is not above the last one was added before.
--
-- KEYS: the stream
-- ARGV: when it is forgotten at the latest (seconds since the epoch), then for each piece its id and what it is
redis.pcall('XGROUP', 'CREATE', KEYS[1], 'workers', '0', 'MKSTREAM')
for i = 2, #ARGV, 2 do
  redis.pcall('XADD', KEYS[1], ARGV[i], 'work', ARGV[i + 1])
end
redis.call('EXPIREAT', KEYS[1], ARGV[1])
return 1
