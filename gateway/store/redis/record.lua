-- Note which lines have an answer and where it is, and which pieces of work are done: all of it, each line once.
--
-- KEYS: the batch's stream, the bits of lines that have an answer, the parts with answers, the counts
-- ARGV: when they are forgotten at the latest (seconds since the epoch), the part's name, how many lines,
--       for each line its number and 1 if its answer is good, then the ids of pieces of work
--
-- Returns 1; 0 if the batch is closed.
if redis.call('HEXISTS', KEYS[4], 'closed') == 1 then return 0 end
local last, good, bad, void = 3 + 2 * ARGV[3], 0, 0, {}
for i = 4, last, 2 do
  if redis.call('SETBIT', KEYS[2], ARGV[i], 1) == 1 then
    void[#void + 1] = ARGV[i]
  elseif ARGV[i + 1] == '1' then
    good = good + 1
  else
    bad = bad + 1
  end
end
if good + bad > 0 then
  redis.call('RPUSH', KEYS[3], ARGV[2] .. ' ' .. table.concat(void, ','))
  redis.call('HINCRBY', KEYS[4], 'completed', good)
  redis.call('HINCRBY', KEYS[4], 'failed', bad)
  for i = 2, 4 do redis.call('EXPIREAT', KEYS[i], ARGV[1]) end
end
for i = last + 1, #ARGV do
  redis.call('XACK', KEYS[1], 'workers', ARGV[i])
  redis.call('XDEL', KEYS[1], ARGV[i])
end
return 1
