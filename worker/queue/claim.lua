-- Claim a released job for one worker.
--
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>  KEYS[3] aq:leases
-- ARGV[1] id, ARGV[2] the hint's epoch, ARGV[3] lease in ms, ARGV[4] the claim's own token
--
-- Returns record, attempts, enqueued_ms, now_ms, then the journal; or nil when the hint is stale:
-- the job ended, was released again, or another worker has it. The token lets a claim whose
-- reply was lost be sent again.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'record', 'attempts', 'enqueued_ms', 'batch')
local mine = job[1] == 'running' and job[3] == ARGV[4]
if job[2] ~= ARGV[2] or (job[1] ~= 'released' and not mine) then
  return nil
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[4])
redis.call('ZADD', KEYS[3], now_ms + tonumber(ARGV[3]), ARGV[1])
if job[7] then
  redis.call('HSETNX', 'aq:batch:' .. job[7], 'started', now_ms)
end
local reply = { job[4], job[5], job[6], tostring(now_ms) }
for _, step in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  reply[#reply + 1] = step
end
return reply
