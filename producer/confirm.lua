#!lua flags=allow-oom
-- A write to wait for: WAITAOF waits for the last write of its own connection, and with it for all before.
--
-- KEYS[1] aq:flush
--
-- What is sent again may find everything there and write nothing, and a connection that was made
-- anew has written nothing yet; such a one would be told at once that all is on disk.

redis.call('SET', KEYS[1], '', 'EX', 60)
