// A device that waits.

// Keeps the device for so many nanoseconds.
KERNEL(32) hold_u32(u64 ns) {
#ifndef OPTPIPE_EMULATE
    u64 begin, now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - begin < ns);
#endif
}
