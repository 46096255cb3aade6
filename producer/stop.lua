#!lua flags=allow-oom
-- Pause, resume or cancel a lane or a batch, at once.
--
-- prelude: schemas/lines.lua
-- prelude: schemas/call_off.lua
-- ARGV[1] pause, resume or cancel; ARGV[2] lane or batch; ARGV[3] its name; ARGV[4] seconds for
-- which jobs of a cancelled lane may come back to it
--
-- What a worker has begun goes on: a paused job to its end, or to its next call where its lane is
-- paused, one of a cancelled batch to its next step. Cancelled jobs that wait are drained by the
-- workers (worker/queue/drain.lua), each to its end in SQL, and those of a batch that are blocked by
-- their thread too; those that are out end when they come back. Cancelling a lane means the jobs
-- that were enqueued before now; a cancelled batch takes no more rows.
--
-- Returns how many jobs wait there in lines, of a batch that is cancelled the blocked ones too; -1 for a batch that
-- is not known, has ended, or is to be paused after it was called off: nothing was changed.

local verb, kind, name = ARGV[1], ARGV[2], ARGV[3]
local batch = 'aq:batch:' .. name
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function lines_of_lane()
  local found = {}
  for _, priority in ipairs(PRIORITIES) do
    for _, line in ipairs(redis.call('ZRANGE', 'aq:lines:' .. priority .. ':' .. name, 0, -1)) do
      found[#found + 1] = line
    end
  end
  for _, line in ipairs(lines_of_paused_batches()) do
    local _, _, route = line_parts(line)
    if lane_of(route) == name then
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

local function pause_lane()
  redis.call('SADD', 'aq:paused', name)
  shut_lane(name)
end

local function resume_lane()
  redis.call('SREM', 'aq:paused', name)
  open_lane(name)
end

local function cancel_lane()
  -- By route: a route that meets this lane only later brings its jobs along unharmed.
  local routes = redis.call('HGETALL', 'aq:routes')
  for i = 1, #routes, 2 do
    if routes[i + 1] == name then
      redis.call('SET', 'aq:off:' .. routes[i], now_ms, 'EX', ARGV[4])
    end
  end
  for _, line in ipairs(lines) do
    drain_line(line)
  end
end

local function pause_batch()
  redis.call('HSETNX', batch, 'paused_ms', now_ms)
  unregister_lines(name)
end

local function resume_batch()
  redis.call('HDEL', batch, 'paused_ms')
  register_lines(name)
end

local function cancel_batch()
  waiting = waiting + redis.call('SCARD', 'aq:blocked:' .. name)
  call_off_batch(name, 'cancelled', now_ms)
end

local verbs = {
  lane = { pause = pause_lane, resume = resume_lane, cancel = cancel_lane },
  batch = { pause = pause_batch, resume = resume_batch, cancel = cancel_batch },
}
if kind == 'batch' and (is_over(name) or (verb == 'pause' and batch_called_off_as(name))) then
  return -1
end
verbs[kind][verb]()
redis.call('PUBLISH', 'aq:wake', verb)
return waiting
