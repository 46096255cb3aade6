-- Pause, resume or cancel a lane or a batch, at once.
--
-- prelude: schemas/lines.lua
-- ARGV[1] pause, resume or cancel; ARGV[2] lane or batch; ARGV[3] its name; ARGV[4] most snoozed
-- jobs to look through
--
-- What a worker has begun goes on: a paused job to its end, one of a cancelled batch to its next
-- step. Cancelled jobs that wait are drained by the workers (worker/queue/drain.lua), each to
-- its end in SQL. Cancelling a lane means the jobs that wait in it now; a cancelled batch takes
-- no more rows. Returns how many jobs wait there in lines.

local verb, kind, name = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function lines_of_lane()
  local found = {}
  for _, priority in ipairs(PRIORITIES) do
    for _, line in ipairs(redis.call('ZRANGE', 'aq:lines:' .. priority .. ':' .. name, 0, -1)) do
      found[#found + 1] = line
    end
  end
  return found
end

local function lines_of_batch()
  return redis.call('SMEMBERS', 'aq:linesof:' .. name)
end

local lines = kind == 'lane' and lines_of_lane() or lines_of_batch()
local waiting = 0
for _, line in ipairs(lines) do
  waiting = waiting + redis.call('LLEN', 'aq:line:' .. line)
end

local function pause()
  if kind == 'lane' then
    redis.call('SADD', 'aq:paused', name)
    shut_lane(name)
  else
    redis.call('HSETNX', 'aq:batch:' .. name, 'paused_ms', now_ms)
    for _, line in ipairs(lines) do
      unregister_line(line)
    end
  end
end

local function resume()
  if kind == 'lane' then
    redis.call('SREM', 'aq:paused', name)
    open_lane(name)
  else
    redis.call('HDEL', 'aq:batch:' .. name, 'paused_ms')
    for _, line in ipairs(lines) do
      if redis.call('EXISTS', 'aq:line:' .. line) == 1 then
        register_line(line)
      end
    end
  end
end

local function cancel_waiting()
  for _, line in ipairs(lines) do
    local length = redis.call('LLEN', 'aq:line:' .. line)
    if length > 0 then
      unregister_line(line)
      redis.call('HSET', 'aq:draining', line, kind == 'batch' and -1 or length)
    end
  end
end

local function cancel_batch()
  local batch = 'aq:batch:' .. name
  redis.call('HSETNX', batch, 'cancelled_ms', now_ms)
  redis.call('HDEL', batch, 'paused_ms')
  cancel_waiting()
  -- Snoozed jobs would come back only when their wait is over.
  for _, id in ipairs(redis.call('ZRANGE', 'aq:snoozed', 0, tonumber(ARGV[4]) - 1)) do
    if redis.call('HGET', 'aq:job:' .. id, 'batch') == name then
      redis.call('ZADD', 'aq:snoozed', 0, id)
    end
  end
  local counts = redis.call('HMGET', batch, 'total', 'enqueued', 'finished')
  if not counts[1] then
    redis.call('HSET', batch, 'total', counts[2] or 0)
    if tonumber(counts[3] or '0') >= tonumber(counts[2] or '0') then
      redis.call('SADD', 'aq:ending', name)
    end
  end
end

if verb == 'pause' then
  pause()
elseif verb == 'resume' then
  resume()
elseif kind == 'batch' then
  cancel_batch()
else
  cancel_waiting()
end
redis.call('PUBLISH', 'aq:wake', verb)
return waiting
