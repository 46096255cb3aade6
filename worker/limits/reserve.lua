#!lua flags=allow-oom
-- Ask for a turn, ask again with the ticket, or confirm a grant: one script, idempotent by id.
--
-- ARGV[1] lane, ARGV[2] id of the reservation, ARGV[3] owner (a job), ARGV[4] process,
-- ARGV[5] tokens, ARGV[6] the lane's limits as in turns.lua; keys: turns.lua
--
-- Returns { 1, 0 } granted, the call may be made now;
--         { 0, us } waits, with a ticket: asks again after so long, or when its channel names it;
--         { 2, us } later: those ahead alone need longer than the horizon, nothing was kept;
--         { -1, tokens } too large: a minute of the lane has no more than so many.

-- Who would wait longer waits in the line of its job instead.
local HORIZON_US = 5000000

local lane, id, tokens = ARGV[1], ARGV[2], tonumber(ARGV[5])
local s = open(lane, ARGV[6])

local function sent(r)
  r.state, r.expires_us = 'sent', s.now_us + s.hold_us
  hold(s, r)
  close(s)
  return { 1, 0 }
end

local function wait(r, at_us, full)
  if full then
    at_us = max(at_us, s.now_us + SLOT_RETRY_US)
  end
  r.at_us, r.expires_us = at_us, s.now_us + GRACE_US
  hold(s, r)
  close(s)
  return { 0, at_us - s.now_us }
end

-- How many stand before this ticket, and their tokens; nil if it is not there.
local function ahead_of(ticket)
  local ahead, ahead_tokens, index = 0, 0, 0
  repeat
    local tickets = redis.call('LRANGE', s.tickets_key, index, index + 127)
    for _, other in ipairs(tickets) do
      if other == ticket then
        return ahead, ahead_tokens
      end
      ahead, ahead_tokens = ahead + 1, ahead_tokens + string.match(other, '^%d+')
    end
    index = index + #tickets
  until #tickets == 0
  return nil
end

local r = held(s, id)
if r and r.state == 'granted' and s.now_us - r.at_us > LATE_US then
  -- What was charged then would be sent now. It is dated anew, or stands first in the line again.
  correct(s, r, -1, -r.tokens)
  if is_full_but(s, 1) or turn(s, 0, 0, r.tokens) > s.now_us then
    redis.call('LPUSH', s.tickets_key, ticket_of(r))
    join(s, r.tokens)
    r.state = 'waiting'
    hold(s, r)
  else
    r.cell, r.at_us = charge(s, r.tokens), s.now_us
  end
end
if r and r.state ~= 'waiting' then
  return sent(r)
end
advance(s)
if r then
  r = held(s, id)
  if r and r.state ~= 'waiting' then
    return sent(r)
  end
  local ahead, ahead_tokens = ahead_of(ticket_of({ id = id, tokens = tokens }))
  if r and ahead and s.cool_until_us - s.now_us > HORIZON_US then
    -- The lane cools down since it was told its turn: it waits in its line instead of on a worker.
    give_back(s, r)
    close(s)
    return { 2, ceil(s.cool_until_us - s.now_us - HORIZON_US / 2) }
  end
  if r and ahead then
    return wait(r, turn(s, ahead, ahead_tokens, r.tokens), is_full(s))
  end
end

redis.call('ZREM', 'aq:entering:' .. lane, ARGV[3])
if redis.call('SISMEMBER', 'aq:paused', lane) == 1 then
  close(s)
  return { 2, SLOT_RETRY_US }
end
if tokens > s.own_tpm then
  close(s)
  return { -1, s.own_tpm }
end
if tokens > s.tpm then
  -- The provider says for now that a minute has less: that may pass.
  close(s)
  return { 2, max(SLOT_RETRY_US, min(MINUTE_US, s.told_until_us - s.now_us)) }
end
s.avg_tokens = s.avg_tokens > 0 and s.avg_tokens + (tokens - s.avg_tokens) / 16 or tokens
r = { id = id, state = 'waiting', tokens = tokens, cell = 0, process = ARGV[4] }
local at_us = turn(s, s.waiting, s.waiting_tokens, tokens)
local full = is_full(s)
if s.waiting == 0 and not full and at_us <= s.now_us then
  r.cell, r.at_us = charge(s, tokens), s.now_us
  return sent(r)
end
-- Judged by the smallest call: else small ones would starve a large one, which waits longer.
local ahead_us = at_us - s.now_us <= HORIZON_US and 0 or turn(s, s.waiting, s.waiting_tokens, 1) - s.now_us
if ahead_us > HORIZON_US or (full and s.waiting >= s.most) then
  close(s)
  return { 2, max(SLOT_RETRY_US, ceil(ahead_us - HORIZON_US / 2)) }
end
redis.call('RPUSH', s.tickets_key, ticket_of(r))
join(s, tokens)
return wait(r, at_us, full)
