-- Append a batch of entries to the ledger's stream and to its sums: all of it, and once.
--
-- KEYS: the batch's mark, the stream, the index of days, then hashes of sums: by target, and one for each day
-- ARGV: how long the mark stays (seconds), the stream's bound, how many entries, the entries;
--       then for each hash: its day ('' for the one by target), when it expires (seconds since the epoch, 0: never),
--       how many fields, and for each field its name and what to add to it
if not redis.call('SET', KEYS[1], 1, 'NX', 'EX', ARGV[1]) then return 0 end
local at = 3 + ARGV[3]
for i = 4, at do
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[2], '*', 'entry', ARGV[i])
end
for i = 4, #KEYS do
  local day, expires, fields = ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  at = at + 3
  for _ = 1, fields do
    redis.call('HINCRBY', KEYS[i], ARGV[at + 1], ARGV[at + 2])
    at = at + 2
  end
  if day ~= '' then
    redis.call('ZADD', KEYS[3], 0, day)
    redis.call('EXPIREAT', KEYS[i], expires)
  end
end
return 1
