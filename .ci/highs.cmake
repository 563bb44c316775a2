# HiGHS in a dozen large sources instead of hundreds of small ones: its headers are then read a dozen times, and
# it builds in half the time.
set(CMAKE_UNITY_BUILD ON)
set(CMAKE_UNITY_BUILD_BATCH_SIZE 12)
