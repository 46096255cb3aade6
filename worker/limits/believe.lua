#!lua flags=allow-oom
-- Believe what a provider says of its limits where it says less than we thought; never loosens.
--
-- ARGV[1] lane, ARGV[2..4] requests: limit, remaining, us until the reset, ARGV[5..7] the same of
-- tokens; '' is not told; keys: turns.lua
--
-- Returns how long nothing is granted for, in us; 0 if that has not become longer.

-- A lower limit holds for this long after it was last told.
local TOLD_US = 300000000
-- Nothing stands still for longer on such a word alone, and none of the shorter waits is worth it:
-- what is told is as old as the reply, and at full use next to nothing remains all the time.
local LONGEST_US, SHORTEST_US = 120000000, 2000000
-- Told to be used up, where our own books say so too, is no news: our pace already takes care.
local NEWS = 0.1

local s = open(ARGV[1])
if not s.rpm then
  return 0
end

local function lower(told, ours)
  told = tonumber(told)
  return told and told >= 1 and told < ours and floor(told) or 0
end

-- How long to wait for the reset of one kind; our own books have `ours` used of `limit`.
local function pause(told_limit, remaining, reset_us, need, ours, limit)
  remaining, reset_us = tonumber(remaining), tonumber(reset_us)
  if not remaining or not reset_us or remaining >= need or reset_us <= SHORTEST_US then
    return 0
  end
  local most = tonumber(told_limit) or limit
  if most - remaining - ours <= NEWS * most then
    return 0
  end
  return min(reset_us, LONGEST_US)
end

local pause_us = max(pause(ARGV[2], ARGV[3], ARGV[4], 1, s.requests, s.rpm),
  pause(ARGV[5], ARGV[6], ARGV[7], max(1, s.avg_tokens), s.tokens, s.tpm))

local rpm, tpm = struct.unpack(LIMITS, s.limits)
local told_rpm, told_tpm = lower(ARGV[2], rpm), lower(ARGV[5], tpm)
if told_rpm > 0 or told_tpm > 0 then
  s.told_rpm, s.told_tpm, s.told_until_us = told_rpm, told_tpm, s.now_us + TOLD_US
end

local until_us = s.now_us + pause_us
local longer = pause_us > 0 and until_us > s.cool_until_us
if longer then
  s.cool_until_us = until_us
end
close(s)
return longer and pause_us or 0
