-- How waiting jobs stand in lines, and how lines, lanes and workspaces take turns.
--
-- A prelude: schemas/scripts.py puts it in front of each script that moves jobs. Keys are those
-- of schemas/names.py:
--   aq:line:<line>             list of jobs; <line> is <priority>|<batch or ''>|<route>
--   aq:linesof:<batch>     the lines that a batch's jobs have stood in
--   aq:routes                  route -> lane, as workers found it; '?<route>' stands for one not met yet
--   aq:lines:<priority>:<lane> the lane's lines that have jobs, the one served longest ago first
--   aq:lanes:<priority>:<ws>   the workspace's open lanes that have lines, likewise
--   aq:ring                    workspaces that have open lanes, by tokens served / weight
--   aq:ring:left               the same of workspaces that left the ring ahead of the others
--   aq:ring:now                the score of the workspace that was served last
--   aq:turn                    counts what was served, and so orders lines and lanes
--   aq:parked                  lanes without room, by the ms at which to look again
--   aq:paused                  lanes that people stopped; a batch says `paused_ms` itself, and `short_ms`
--                              while its calls in flight hold what is left of its cap
--   aq:draining                names of the lists of jobs that wait to end without a call, and BLOCKED<batch>
--   aq:drain:<name>            such a list: what was a line until it was called off, or BACK
--   aq:blocked:<batch>         jobs of the batch that are blocked by their threads
--   aq:drained                 jobs that were taken from there, by when they must have been claimed
--   aq:off:<route>             when its lane was cancelled, ms; what was enqueued before ends when it comes back
--   aq:leases                  jobs that are out, released or running, by the ms at which that is given up
--   aq:places                  workspace -> how many of its jobs are out
--
-- A line with jobs is registered with its lane, and an open lane with its workspace, unless the
-- lane is parked or paused, or the line's batch paused or short. Only the step from none to one job has
-- to register it. Who is out has a lease, and every lease is counted in aq:places.

-- A workspace that has not come back for as long begins level again.
local LEFT_FOR_S = 3600
-- Where jobs go that come back after they were called off.
local BACK = 'back'
-- With a batch's id behind it, the name of aq:blocked:<batch> in aq:draining.
local BLOCKED = 'blocked|'
local PRIORITIES = { 'I', 'B' } -- interactive before batch
-- Why the jobs of a batch are called off: `<reason>_ms` of the batch says since when.
local REASONS = { 'cancelled', 'expired', 'over_budget' }
local REASON_FIELDS = { 'cancelled_ms', 'expired_ms', 'over_budget_ms' }

local function workspace_of(lane)
  return string.match(lane, '^%??([^/]*)')
end

local function lane_of(route)
  return redis.call('HGET', 'aq:routes', route) or ('?' .. route)
end

local function line_name(priority, batch, route)
  return priority .. '|' .. (batch or '') .. '|' .. route
end

local function line_parts(line)
  return string.match(line, '^(%a)|([^|]*)|(.*)$')
end

-- The next turn: who joins stands behind all who wait.
local function take_turn()
  return redis.call('INCR', 'aq:turn')
end

-- A workspace that comes back keeps what it was ahead, and one that is new begins level.
local function enter_ring(workspace)
  if redis.call('ZSCORE', 'aq:ring', workspace) then
    return
  end
  local left = tonumber(redis.call('ZSCORE', 'aq:ring:left', workspace) or '0')
  local now = tonumber(redis.call('GET', 'aq:ring:now') or '0')
  redis.call('ZADD', 'aq:ring', math.max(left, now), workspace)
  redis.call('ZREM', 'aq:ring:left', workspace)
end

local function leave_ring(workspace)
  local score = redis.call('ZSCORE', 'aq:ring', workspace)
  local now = redis.call('GET', 'aq:ring:now') or '0'
  redis.call('ZREM', 'aq:ring', workspace)
  redis.call('ZREMRANGEBYSCORE', 'aq:ring:left', '-inf', now)
  if score and tonumber(score) > tonumber(now) then
    redis.call('ZADD', 'aq:ring:left', score, workspace)
    redis.call('EXPIRE', 'aq:ring:left', LEFT_FOR_S)
  end
end

local function is_shut(lane)
  return redis.call('ZSCORE', 'aq:parked', lane) or redis.call('SISMEMBER', 'aq:paused', lane) == 1
end

-- Let the lane take turns again, if anything waits in it and nothing keeps it shut.
local function open_lane(lane)
  if is_shut(lane) then
    return
  end
  local workspace = workspace_of(lane)
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', 'aq:lines:' .. priority .. ':' .. lane) == 1 then
      redis.call('ZADD', 'aq:lanes:' .. priority .. ':' .. workspace, 'NX', take_turn(), lane)
      enter_ring(workspace)
    end
  end
end

local function shut_lane(lane)
  local workspace = workspace_of(lane)
  for _, priority in ipairs(PRIORITIES) do
    redis.call('ZREM', 'aq:lanes:' .. priority .. ':' .. workspace, lane)
  end
end

-- Nothing of the lane is released before `until_ms`; of two waits the longer stands.
local function park_lane(lane, until_ms)
  redis.call('ZADD', 'aq:parked', 'GT', until_ms, lane)
  shut_lane(lane)
end

local function stands_still(batch)
  local held = redis.call('HMGET', 'aq:batch:' .. batch, 'paused_ms', 'short_ms')
  return held[1] or held[2]
end

-- Register a line that has jobs, unless its batch is paused or short.
local function register_line(line)
  local priority, batch, route = line_parts(line)
  if batch ~= '' then
    redis.call('SADD', 'aq:linesof:' .. batch, line)
    if stands_still(batch) then
      return
    end
  end
  local lane = lane_of(route)
  redis.call('ZADD', 'aq:lines:' .. priority .. ':' .. lane, 'NX', take_turn(), line)
  open_lane(lane)
end

-- The lines of paused and short batches: they have jobs and stand with no lane.
local function lines_of_paused_batches()
  local found = {}
  for _, batch in ipairs(redis.call('ZRANGE', 'aq:batches', 0, -1)) do
    if stands_still(batch) then
      for _, line in ipairs(redis.call('SMEMBERS', 'aq:linesof:' .. batch)) do
        found[#found + 1] = line
      end
    end
  end
  return found
end

local function unregister_line(line)
  local priority, _, route = line_parts(line)
  redis.call('ZREM', 'aq:lines:' .. priority .. ':' .. lane_of(route), line)
end

-- The lines of a batch that have jobs stand with their lanes again, unless something else keeps it still.
local function register_lines(batch)
  for _, line in ipairs(redis.call('SMEMBERS', 'aq:linesof:' .. batch)) do
    if redis.call('EXISTS', 'aq:line:' .. line) == 1 then
      register_line(line)
    end
  end
end

local function unregister_lines(batch)
  for _, line in ipairs(redis.call('SMEMBERS', 'aq:linesof:' .. batch)) do
    unregister_line(line)
  end
end

-- Put a job at the tail of its line, or at the head when it comes back.
local function join_line(line, id, at_head)
  if redis.call(at_head and 'LPUSH' or 'RPUSH', 'aq:line:' .. line, id) == 1 then
    register_line(line)
  end
end

-- All jobs of a line are to end without a call; who joins it from now on is not.
local function drain_line(line)
  if redis.call('EXISTS', 'aq:line:' .. line) == 1 then
    local name = take_turn()
    redis.call('RENAME', 'aq:line:' .. line, 'aq:drain:' .. name)
    redis.call('SADD', 'aq:draining', name)
  end
  unregister_line(line)
end

-- The reason for which the batch was called off first, and when; nil if it was not.
local function batch_called_off_as(batch)
  local why, since_ms = nil, math.huge
  for i, ms in ipairs(redis.call('HMGET', 'aq:batch:' .. batch, unpack(REASON_FIELDS))) do
    if ms and tonumber(ms) < since_ms then
      why, since_ms = REASONS[i], tonumber(ms)
    end
  end
  return why, since_ms
end

-- Why a job is to end without another call, or nil: its own mark, its batch, or, if `route` is given,
-- the lane in which it was then. What came first counts.
local function called_off_as(mark, batch, route, enqueued_ms)
  if mark then
    return mark
  end
  local why, since_ms = nil, math.huge
  if batch then
    why, since_ms = batch_called_off_as(batch)
  end
  local off_ms = route and tonumber(redis.call('GET', 'aq:off:' .. route))
  if off_ms and tonumber(enqueued_ms) < off_ms and off_ms < since_ms then
    why = 'cancelled'
  end
  return why
end

local function is_paused(batch, route)
  return (batch and redis.call('HEXISTS', 'aq:batch:' .. batch, 'paused_ms') == 1)
    or redis.call('SISMEMBER', 'aq:paused', lane_of(route)) == 1
end

-- The job is out until it ends or comes back, or until `until_ms`.
local function lease(id, route, until_ms)
  if redis.call('ZADD', 'aq:leases', until_ms, id) == 1 then
    redis.call('HINCRBY', 'aq:places', workspace_of(route), 1)
  end
end

local function end_lease(id, route)
  redis.call('ZREM', 'aq:drained', id)
  redis.call('ZREM', 'aq:entering:' .. lane_of(route), id)
  if redis.call('ZREM', 'aq:leases', id) == 1 then
    local workspace = workspace_of(route)
    if redis.call('HINCRBY', 'aq:places', workspace, -1) <= 0 then
      redis.call('HDEL', 'aq:places', workspace)
    end
  end
end

-- Put a job that was out, snoozed or blocked at the head of its line; one that was called off is drained.
local function rejoin_line(id)
  local job = redis.call('HMGET', 'aq:job:' .. id, 'priority', 'batch', 'route', 'called_off', 'enqueued_ms')
  if not job[3] then
    return
  end
  end_lease(id, job[3])
  redis.call('HSET', 'aq:job:' .. id, 'state', 'waiting')
  if called_off_as(job[4], job[2], job[3], job[5]) then
    redis.call('RPUSH', 'aq:drain:' .. BACK, id)
    redis.call('SADD', 'aq:draining', BACK)
  else
    join_line(line_name(job[1], job[2], job[3]), id, true)
  end
end
