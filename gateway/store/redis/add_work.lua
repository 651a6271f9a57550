-- Add pieces of work to a batch's stream. An id that is not above the last one was added before. The piece 2-1, to
-- write the results, takes the place of all others.
--
-- KEYS: the stream
-- ARGV: when it is forgotten at the latest (seconds since the epoch), then for each piece its id and what it is
redis.pcall('XGROUP', 'CREATE', KEYS[1], 'workers', '0', 'MKSTREAM')
for i = 2, #ARGV, 2 do
  local added = redis.pcall('XADD', KEYS[1], ARGV[i], 'work', ARGV[i + 1])
  if ARGV[i] == '2-1' and not added['err'] then
    redis.call('XTRIM', KEYS[1], 'MINID', '2-1')  -- the batch ends: nobody is to begin with what is left of it
  end
end
redis.call('EXPIREAT', KEYS[1], ARGV[1])
return 1
