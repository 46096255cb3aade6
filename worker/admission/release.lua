-- Release waiting jobs to the workers: fairly between workspaces, and only what can soon run.
--
-- prelude: schemas/lines.lua
-- prelude: worker/limits/turns.lua
-- ARGV[1] most jobs to release now, ARGV[2] ms within which a released job must be claimed,
-- ARGV[3] jobs that may be released above the workers' capacity, in per cent of it,
-- ARGV[4] horizon in us: a job whose turn under its lane's limit is further away stays here
--
-- Keys: aq:workers (capacity of live processes), aq:weights (workspace -> weight), aq:leases
-- (what is out already), aq:entering:<lane> (released jobs that have not asked the limiter yet,
-- by the ms at which that is given up), aq:limit:<lane> (worker/limits), aq:faults, the lines.
--
-- The workspace that was served the fewest tokens for its weight comes next (start-time fair
-- queueing: what deficit round robin approximates, and without a quantum to choose). Within it
-- interactive lines come before others; among equals lanes, and in them lines, take turns job
-- by job. A lane without room is parked until it may have some.
--
-- Returns ms until a parked lane may have room (-1: none is parked), then id, epoch, id, epoch, …
-- A release raises the epoch: only a hint that carries it can claim the job. The lease of a
-- released job ends by itself, so a lost hint costs ARGV[2].

-- Jobs of a route whose lane is not known yet: enough to find out, and to begin.
local UNKNOWN_ROOM = 64
-- A lane that stands before a wall is tried by one job at a time.
local FAULTED_ROOM = 1
local UNKNOWN_TOKENS = 1000
local LOOK_AGAIN_US = 100000
local UNPARK_AT_ONCE = 256
-- A bound on the lanes looked at in vain in one call; the rest has its turn in the next.
local LOOKS_AT_ONCE = 512

local at_once, claim_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local horizon_us = tonumber(ARGV[4])
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

local function free_capacity()
  local capacity = 0
  local workers = redis.call('HGETALL', 'aq:workers')
  for i = 1, #workers, 2 do
    local threads, expires_ms = string.match(workers[i + 1], '^(%d+) (%d+)$')
    if tonumber(expires_ms) < now_ms then
      redis.call('HDEL', 'aq:workers', workers[i])
    else
      capacity = capacity + tonumber(threads)
    end
  end
  local most = capacity + math.ceil(capacity * tonumber(ARGV[3]) / 100)
  return math.min(at_once, most - redis.call('ZCARD', 'aq:leases'))
end

-- How many jobs of the lane may go out now, after how many us one more may, and what one costs.
local function room_of(lane)
  local entering = 'aq:entering:' .. lane
  redis.call('ZREMRANGEBYSCORE', entering, '-inf', now_ms)
  local coming = redis.call('ZCARD', entering)
  if string.sub(lane, 1, 1) == '?' then
    return UNKNOWN_ROOM - coming, LOOK_AGAIN_US, UNKNOWN_TOKENS
  end
  local jobs, retry_us, tokens = lane_room(lane, now_us, horizon_us, coming)
  if redis.call('HEXISTS', 'aq:faults', lane) == 1 then
    jobs = math.min(jobs, FAULTED_ROOM - coming)
  end
  return jobs, math.max(retry_us, 1000), tokens or UNKNOWN_TOKENS
end

-- Lanes that this call has met: their room, price a job, …
local lanes = {}
local weights = {}

local function known(lane)
  if not lanes[lane] then
    local room, retry_us, tokens = room_of(lane)
    lanes[lane] = { room = room, retry_us = retry_us, tokens = tokens }
  end
  return lanes[lane]
end

local function weight_of(workspace)
  if not weights[workspace] then
    weights[workspace] = tonumber(redis.call('HGET', 'aq:weights', workspace) or '1')
  end
  return weights[workspace]
end

-- Take the next job of a line that waits; nil if nothing waits in it any more.
local function next_job(line)
  while true do
    local id = redis.call('LPOP', 'aq:line:' .. line)
    if not id or redis.call('HGET', 'aq:job:' .. id, 'state') == 'waiting' then
      return id
    end
  end
end

-- Take the next job of a workspace and the lane it belongs to; nil if it has none that may go now.
local function next_of(workspace)
  for _, priority in ipairs(PRIORITIES) do
    local ring = 'aq:lanes:' .. priority .. ':' .. workspace
    while true do
      local lane = redis.call('ZRANGE', ring, 0, 0)[1]
      if not lane then
        break
      end
      local state = known(lane)
      if state.room < 1 then
        park_lane(lane, now_ms + math.ceil(state.retry_us / 1000))
        return nil, true
      end
      local lines = 'aq:lines:' .. priority .. ':' .. lane
      local line = redis.call('ZRANGE', lines, 0, 0)[1]
      if not line then
        redis.call('ZREM', ring, lane)
      else
        local id = next_job(line)
        if id then
          return id, nil, lane, ring, line, lines
        end
        redis.call('ZREM', lines, line)
      end
    end
  end
  return nil, false
end

for _, lane in ipairs(redis.call('ZRANGEBYSCORE', 'aq:parked', '-inf', now_ms, 'LIMIT', 0, UNPARK_AT_ONCE)) do
  redis.call('ZREM', 'aq:parked', lane)
  open_lane(lane)
end

local room, looks, served = free_capacity(), 0, tonumber(redis.call('GET', 'aq:turn') or '0')
local released = { -1 }
local ring_now
while room > 0 and looks < LOOKS_AT_ONCE do
  local head = redis.call('ZRANGE', 'aq:ring', 0, 0, 'WITHSCORES')
  local workspace = head[1]
  if not workspace then
    break
  end
  local id, parked, lane, ring, line, lines = next_of(workspace)
  if id then
    local state = lanes[lane]
    local job = 'aq:job:' .. id
    state.room = state.room - 1
    room = room - 1
    served = served + 1
    released[#released + 1] = id
    released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
    redis.call('HSET', job, 'state', 'released')
    redis.call('ZADD', 'aq:leases', now_ms + claim_ms, id)
    redis.call('ZADD', 'aq:entering:' .. lane, now_ms + claim_ms, id)
    redis.call('ZADD', lines, 'XX', served, line)
    redis.call('ZADD', ring, 'XX', served, lane)
    ring_now = head[2]
    redis.call('ZINCRBY', 'aq:ring', state.tokens / weight_of(workspace), workspace)
  else
    looks = looks + 1
    if not parked then
      leave_ring(workspace)
    end
  end
end

for lane, state in pairs(lanes) do
  if redis.call('EXISTS', 'aq:entering:' .. lane) == 1 then
    redis.call('PEXPIRE', 'aq:entering:' .. lane, 2 * claim_ms)
  end
end
redis.call('SET', 'aq:turn', served)
if ring_now then
  redis.call('SET', 'aq:ring:now', ring_now)
end
local soonest = redis.call('ZRANGE', 'aq:parked', 0, 0, 'WITHSCORES')
if looks >= LOOKS_AT_ONCE then
  released[1] = 0
elseif soonest[2] then
  released[1] = math.max(0, math.ceil(tonumber(soonest[2]) - now_ms))
end
return released
