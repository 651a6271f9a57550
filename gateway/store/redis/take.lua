-- Take a piece of work: one that nobody has had, else one that its worker has not held for too long.
--
-- KEYS: the batch's stream
-- ARGV: the worker, milliseconds after which a piece is taken from another
--
-- Returns its id and what it is, or nothing.
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local new = redis.call('XREADGROUP', 'GROUP', 'workers', ARGV[1], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
local entry, cursor = new and new[1][2][1], '0-0'
while not entry do
  local claimed = redis.call('XAUTOCLAIM', KEYS[1], 'workers', ARGV[1], ARGV[2], cursor, 'COUNT', 1)
  entry, cursor = claimed[2][1], claimed[1]
  if cursor == '0-0' then break end  -- an old Redis also hands out what was trimmed, as nothing
end
if not entry then return false end
return {entry[1], entry[2][2]}
