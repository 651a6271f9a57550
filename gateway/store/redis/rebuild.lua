-- Write budgets as the ledger knows them, after the counters were lost. Once for each budget and period.
--
-- KEYS: budget hashes (as in admit.lua; r: the period it was rebuilt in)
-- ARGV: for each the period's number and the units settled in it
for i, key in ipairs(KEYS) do
  local number, units = ARGV[2 * i - 1], ARGV[2 * i]
  local found = redis.call('HMGET', key, 'w', 'r')
  if found[1] ~= number then
    redis.call('HSET', key, 'w', number, 's', units, 'o', 0, 'r', number)
  elseif found[2] ~= number then
    -- A call that was granted before the loss has been settled since: its entry may be in the ledger's sum or not.
    redis.call('HINCRBY', key, 's', units)
    redis.call('HSET', key, 'r', number)
  end
  redis.call('PEXPIRE', key, 40 * 86400000)
end
return #KEYS
