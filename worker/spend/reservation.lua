-- What a job holds of the caps of its batch and its workspace while it makes a call.
--
-- A prelude, after schemas/lines.lua, of each script that ends what a job does: whoever takes a job out of
-- a worker's hands ends its reservation in the same step, so that none outlives its run. Money is in nanos.
--   aq:job:<id>            held_nano what it holds, held_on its workspace's account, held_sent once the call may have left
--   aq:batch:<batch>       spent_nano, reserved_nano; short_ms: what is left is held, so its lines wait
--   aq:spend:<ws>:<period> the account: spent_nano, reserved_nano
--   aq:spends              keys of accounts
--
-- A call that may have left and of which nobody knows more keeps what it held as spent.

-- Accounts of a day or month are looked at for as long after their last first use.
local ACCOUNT_KEPT_S = 400 * 24 * 3600

local function open_account(account)
  if redis.call('SADD', 'aq:spends', account) == 1 and not string.find(account, ':total$') then
    redis.call('HSETNX', account, 'spent_nano', 0)
    redis.call('EXPIRE', account, ACCOUNT_KEPT_S)
  end
end

-- The batch's lines stand with their lanes again: something of its cap may have come back.
local function end_shortage(batch)
  if redis.call('HDEL', 'aq:batch:' .. batch, 'short_ms') == 0 then
    return
  end
  register_lines(batch)
  redis.call('PUBLISH', 'aq:wake', 'budget')
end

-- End the job's reservation, if it has one: `cost` is spent, or what it held if nobody knows (nil) and its
-- call may have left. Returns whether there was one.
local function end_reservation(id, cost)
  local job = 'aq:job:' .. id
  local held = redis.call('HMGET', job, 'held_nano', 'held_on', 'held_sent', 'batch')
  if not held[1] then
    return false
  end
  redis.call('HDEL', job, 'held_nano', 'held_on', 'held_sent')
  local spent = cost or (held[3] and held[1]) or 0
  for _, key in ipairs({ held[2], held[4] and 'aq:batch:' .. held[4] or nil }) do
    redis.call('HINCRBY', key, 'reserved_nano', 0 - tonumber(held[1]))
    redis.call('HINCRBY', key, 'spent_nano', spent)
  end
  if held[4] then
    end_shortage(held[4])
  end
  return true
end
