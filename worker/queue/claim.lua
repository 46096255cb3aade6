#!lua flags=allow-oom
-- Claim a released job for one worker.
--
-- prelude: schemas/lines.lua
-- KEYS[1] aq:job:<id>  KEYS[2] aq:journal:<id>
-- ARGV[1] id, ARGV[2] the hint's epoch, ARGV[3] lease in ms, ARGV[4] the claim's own token
--
-- Returns record, attempts, enqueued_ms, now_ms, the lane under whose name it was let out or '', why it is called
-- off or '', '1' if its batch has a cap or '', how many workers died while they ran it, then the journal; or nil
-- when the hint is stale: the job ended, was released again, or another worker has it. A job whose batch or lane
-- was paused meanwhile goes back to its line. The token lets a claim whose reply was lost be sent again.

local job = redis.call('HMGET', KEYS[1], 'state', 'epoch', 'owner', 'record', 'attempts', 'enqueued_ms', 'batch', 'route',
  'called_off', 'deaths')
local mine = job[1] == 'running' and job[3] == ARGV[4]
if job[2] ~= ARGV[2] or (job[1] ~= 'released' and not mine) then
  return nil
end
local batch, route = job[7], job[8]
local called_off = called_off_as(job[9], batch, route, job[6])
if not mine and not called_off and is_paused(batch, route) then
  rejoin_line(ARGV[1])
  return nil
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[4])
lease(ARGV[1], route, now_ms + tonumber(ARGV[3]))
if batch then
  redis.call('HSETNX', 'aq:batch:' .. batch, 'started', now_ms)
end
local lane = lane_of(route)
if not redis.call('ZSCORE', 'aq:entering:' .. lane, ARGV[1]) or string.sub(lane, 1, 1) == '?' then
  lane = ''
end
local capped = batch and redis.call('HEXISTS', 'aq:batch:' .. batch, 'spend_cap_nano') == 1
local reply = { job[4], job[5] or '0', job[6], tostring(now_ms), lane, called_off or '', capped and '1' or '',
  job[10] or '0' }
for _, step in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
  reply[#reply + 1] = step
end
return reply
