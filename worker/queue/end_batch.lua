#!lua flags=allow-oom
-- Mark a batch as ended, after its row is in SQL, and tell who waits for it and who has work with those that ended.
--
-- KEYS[1] aq:batch:<batch>  KEYS[2] aq:ending  KEYS[3] aq:rows:<batch>  KEYS[4] aq:batches
-- KEYS[5] aq:linesof:<batch>  KEYS[6] aq:expiring
-- Channels: KEYS[1], aq:batches:news
-- ARGV[1] batch id, ARGV[2] final state, ARGV[3] seconds to keep the counts
--
-- Returns 1, or 0 when another worker has marked it before.

if redis.call('SREM', KEYS[2], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[3], ARGV[3])
redis.call('DEL', KEYS[5])
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('PUBLISH', KEYS[1], ARGV[2])
redis.call('PUBLISH', 'aq:batches:news', ARGV[1])
return 1
