-- How many more jobs of a lane may be out, on their way to its limiter.
--
-- A prelude, after schemas/lines.lua and worker/limits/turns.lua. Keys: aq:entering:<lane>
-- (released jobs that have not asked the limiter yet, by the ms at which that is given up),
-- aq:limit:<lane> and aq:held:<lane> (worker/limits), aq:faults.

-- Jobs of a route whose lane is not known yet: enough to find out.
local UNKNOWN_ROOM = 64
local LOOK_AGAIN_US = 100000
-- No job is on its way for longer: what lies further ahead is older than a clock that was set back.
local ENTERING_AT_MOST_MS = 60000

-- How many jobs of the lane may go out now, after how many us one more may, and what one costs in
-- tokens, where that is known. A lane that stands before a wall is tried by one job at a time.
local function room_of(lane, now_us, horizon_us)
  local entering = 'aq:entering:' .. lane
  local now_ms = math.floor(now_us / 1000)
  redis.call('ZREMRANGEBYSCORE', entering, '-inf', now_ms)
  redis.call('ZREMRANGEBYSCORE', entering, now_ms + ENTERING_AT_MOST_MS, '+inf')
  local coming = redis.call('ZCARD', entering)
  if string.sub(lane, 1, 1) == '?' then
    return UNKNOWN_ROOM - coming, LOOK_AGAIN_US
  end
  local faulted = redis.call('HEXISTS', 'aq:faults', lane) == 1
  if faulted and coming + redis.call('HLEN', 'aq:held:' .. lane) > 0 then
    return 0, LOOK_AGAIN_US
  end
  local jobs, retry_us, tokens = lane_room(lane, now_us, horizon_us, coming)
  if faulted then
    jobs = math.min(jobs, 1)
  end
  return jobs, math.max(retry_us, 1000), tokens
end

-- The job is on its way to the lane's limiter.
local function enter(lane, id, now_ms, within_ms)
  local entering = 'aq:entering:' .. lane
  redis.call('ZADD', entering, now_ms + within_ms, id)
  redis.call('PEXPIRE', entering, 2 * within_ms)
end
