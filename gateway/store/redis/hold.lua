-- Say how long ago a worker has last held pieces of work that are still its own.
--
-- KEYS: the batch's stream
-- ARGV: the worker, how long ago in milliseconds (0: it holds them now), the pieces' ids
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], 'workers', ARGV[i], ARGV[i], 1)
  if pending[1] and pending[1][2] == ARGV[1] then
    redis.call('XCLAIM', KEYS[1], 'workers', ARGV[1], 0, ARGV[i], 'IDLE', ARGV[2], 'JUSTID')
  end
end
return 1
