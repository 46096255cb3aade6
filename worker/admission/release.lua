#!lua
-- Release waiting jobs to the workers: fairly between workspaces, and only what can soon run.
--
-- prelude: schemas/lines.lua
-- prelude: worker/limits/turns.lua
-- prelude: worker/admission/room.lua
-- ARGV[1] most jobs to release now, ARGV[2] ms within which a released job must be claimed,
-- ARGV[3] jobs that may be released above the workers' capacity, in per cent of it,
-- ARGV[4] horizon in us: a job whose turn under its lane's limit is further away stays here,
-- ARGV[5] places that are kept for workspaces that hold few, in per cent of the capacity
--
-- Keys: aq:workers (capacity of live processes), aq:weights (workspace -> weight), those of the
-- prelude's lines and leases, aq:limit:<lane>.
--
-- The workspace that was served the fewest tokens for its weight comes next (start-time fair
-- queueing: what deficit round robin approximates, and without a quantum to choose). Within it
-- interactive lines come before others; among equals lanes, and in them lines, take turns job
-- by job. A lane without room is parked until it may have some.
--
-- Tokens say nothing of places: slow calls of one workspace would hold them all, and whoever
-- comes next would wait for one of these to end. So the last places go to workspaces that hold
-- less than their share, reckoned as if one more were to come. Where there are few places in
-- all, none is kept: a few more hints than places keep the workers busy.
--
-- Returns ms until a parked lane may have room (-1: none is parked), then id, epoch, id, epoch, …
-- A release raises the epoch: only a hint that carries it can claim the job. The lease of a
-- released job ends by itself, so a lost hint costs ARGV[2].

local UNKNOWN_TOKENS = 1000
local UNPARK_AT_ONCE = 256
-- A bound on what is looked at in vain in one call; the rest has its turn in the next.
local LOOKS_AT_ONCE = 512
local SKIPS_AT_ONCE = 5000
local KEPT_FROM = 64
-- A dead process's word from before the server's clock was set back.
local HEARTBEAT_AT_MOST_MS = 120000

local claim_ms, horizon_us = tonumber(ARGV[2]), tonumber(ARGV[4])
local now_us = clock()
local now_ms = math.floor(now_us / 1000)
local looks = 0

local function live_capacity()
  local capacity = 0
  local workers = redis.call('HGETALL', 'aq:workers')
  for i = 1, #workers, 2 do
    local places, expires_ms = string.match(workers[i + 1], '^(%d+) (%d+)$')
    local left_ms = tonumber(expires_ms) - now_ms
    if left_ms < 0 or left_ms > HEARTBEAT_AT_MOST_MS then
      redis.call('HDEL', 'aq:workers', workers[i])
    else
      capacity = capacity + tonumber(places)
    end
  end
  return capacity
end

-- What ends without a call takes no place.
local function places_taken()
  redis.call('ZREMRANGEBYSCORE', 'aq:drained', '-inf', now_ms)
  return math.max(0, redis.call('ZCARD', 'aq:leases') - redis.call('ZCARD', 'aq:drained'))
end

-- Lanes that this call has met: their room, price a job, …
local lanes = {}
local weights = {}

local function known(lane)
  if not lanes[lane] then
    local room, retry_us, tokens = room_of(lane, now_us, horizon_us)
    lanes[lane] = { room = room, retry_us = retry_us, tokens = tokens or UNKNOWN_TOKENS }
  end
  return lanes[lane]
end

local function weight_of(workspace)
  if not weights[workspace] then
    local weight = tonumber(redis.call('HGET', 'aq:weights', workspace) or '1')
    weights[workspace] = weight and weight > 0 and weight or 1
  end
  return weights[workspace]
end

-- Take the next job of a line that waits; nil if nothing waits in it any more.
local function next_job(line)
  while looks < LOOKS_AT_ONCE do
    local id = redis.call('LPOP', 'aq:line:' .. line)
    if not id or redis.call('HGET', 'aq:job:' .. id, 'state') == 'waiting' then
      return id
    end
    looks = looks + 1
  end
end

-- Take the next job of a workspace; nil if this look found none that may go.
local function next_of(workspace)
  for _, priority in ipairs(PRIORITIES) do
    local ring = 'aq:lanes:' .. priority .. ':' .. workspace
    local lane = redis.call('ZRANGE', ring, 0, 0)[1]
    if lane then
      local lines = 'aq:lines:' .. priority .. ':' .. lane
      local line = redis.call('ZRANGE', lines, 0, 0)[1]
      if not line then
        redis.call('ZREM', ring, lane)
        return nil
      end
      local state = known(lane)
      if state.room < 1 and state.let_out then
        -- It was used up in this call: only now is it known when there is more.
        lanes[lane] = nil
        state = known(lane)
      end
      if state.room < 1 then
        park_lane(lane, now_ms + math.ceil(state.retry_us / 1000))
        return nil
      end
      local id = next_job(line)
      if not id and redis.call('EXISTS', 'aq:line:' .. line) == 0 then
        redis.call('ZREM', lines, line)
      end
      return id, lane, ring, line, lines
    end
  end
  leave_ring(workspace)
  return nil
end

for _, lane in ipairs(redis.call('ZRANGEBYSCORE', 'aq:parked', '-inf', now_ms, 'LIMIT', 0, UNPARK_AT_ONCE)) do
  redis.call('ZREM', 'aq:parked', lane)
  open_lane(lane)
end

local capacity = live_capacity()
local kept = capacity >= KEPT_FROM and math.floor(capacity * tonumber(ARGV[5]) / 100) or 0
local surplus = kept > 0 and 0 or math.ceil(capacity * tonumber(ARGV[3]) / 100)
local free = capacity + surplus - places_taken()
local at_once = tonumber(ARGV[1])
local held, held_weight -- places by workspace, once they matter

local function holds_less_than_its_share(workspace)
  if not held then
    held, held_weight = {}, 0
    local places = redis.call('HGETALL', 'aq:places')
    for i = 1, #places, 2 do
      held[places[i]] = tonumber(places[i + 1])
      held_weight = held_weight + weight_of(places[i])
    end
  end
  local holds, weight = held[workspace] or 0, weight_of(workspace)
  local all = held_weight + (holds == 0 and weight or 0) + 1
  return holds < capacity * weight / all
end

-- The workspace to serve next and the score of the ring's head; nil if there is none.
local skipped = 0
local function next_workspace()
  local head = redis.call('ZRANGE', 'aq:ring', skipped, skipped, 'WITHSCORES')
  while head[1] and free <= kept and kept > 0 and not holds_less_than_its_share(head[1]) do
    -- It has its share for as long as this call lasts: nothing ends meanwhile.
    skipped = skipped + 1
    if skipped >= SKIPS_AT_ONCE then
      return nil
    end
    head = redis.call('ZRANGE', 'aq:ring', skipped, skipped, 'WITHSCORES')
  end
  return head[1]
end

local served = tonumber(redis.call('GET', 'aq:turn') or '0')
local released = { -1 }
local ring_now
while free > 0 and at_once > 0 and looks < LOOKS_AT_ONCE do
  local workspace = next_workspace()
  if not workspace then
    break
  end
  local head = redis.call('ZRANGE', 'aq:ring', 0, 0, 'WITHSCORES')
  local id, lane, ring, line, lines = next_of(workspace)
  if id then
    local state = lanes[lane]
    local job = 'aq:job:' .. id
    state.room, state.let_out = state.room - 1, true
    free, at_once, served = free - 1, at_once - 1, served + 1
    released[#released + 1] = id
    released[#released + 1] = redis.call('HINCRBY', job, 'epoch', 1)
    redis.call('HSET', job, 'state', 'released')
    lease(id, lane, now_ms + claim_ms)
    enter(lane, id, now_ms, claim_ms)
    redis.call('ZADD', lines, 'XX', served, line)
    redis.call('ZADD', ring, 'XX', served, lane)
    if held then
      held_weight = held_weight + (held[workspace] and 0 or weight_of(workspace))
      held[workspace] = (held[workspace] or 0) + 1
    end
    -- New workspaces begin level with the one that is furthest behind.
    ring_now = head[2]
    redis.call('ZINCRBY', 'aq:ring', state.tokens / weight_of(workspace), workspace)
  else
    looks = looks + 1
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
