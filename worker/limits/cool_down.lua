#!lua flags=allow-oom
-- Grant nothing of a lane for a while; the longer of two cool-downs wins. Those who wait keep their order.
--
-- ARGV[1] lane, ARGV[2] us; keys: turns.lua

local s = open(ARGV[1])
s.cool_until_us = max(s.cool_until_us, s.now_us + tonumber(ARGV[2]))
close(s)
return 1
