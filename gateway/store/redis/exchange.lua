-- Gateways tell each other how busy they keep a route's targets: write our word on each board, read the others'.
--
-- KEYS       boards: hashes of boot id -> eight bytes of Redis time in microseconds, and the word
-- ARGV[1]    our boot id      ARGV[2]  how old a word may be and still be read, in microseconds
-- ARGV[3]    how old a word is when it is dropped      ARGV[4]  milliseconds after which a board nobody writes goes
-- ARGV[4+i]  our word for board i; '': we only read
--
-- Returns a list for each board: boot id, age in microseconds, word, of one worker after the other.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local boot, fresh, kept = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local stamp = struct.pack('>I8', now)
local answer = {}

for i, board in ipairs(KEYS) do
  local word = ARGV[4 + i]
  if word ~= '' then
    redis.call('HSET', board, boot, stamp .. word)
    redis.call('PEXPIRE', board, ARGV[4])
  end
  local found, others, count = redis.call('HGETALL', board), {}, 0
  for at = 1, #found, 2 do
    if found[at] ~= boot then
      local written = found[at + 1]
      local age = now - struct.unpack('>I8', written)
      -- A Redis whose clock was ahead has died: what it stamped is as dead as what is old.
      if math.abs(age) > kept then
        redis.call('HDEL', board, found[at])
      elseif math.abs(age) <= fresh then
        others[count + 1], others[count + 2], others[count + 3] = found[at], math.max(0, age), string.sub(written, 9)
        count = count + 3
      end
    end
  end
  answer[i] = others
end
return answer
