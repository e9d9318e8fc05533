// A ring that can do what this program does with rings, and nothing else. What a ring does goes past a seccomp filter,
// so whoever breaks into a process that has one could open files and make sockets by it (io_uring_register(2),
// IORING_REGISTER_RESTRICTIONS).
#pragma once

struct io_uring;

namespace vtpmd {

/// io_uring_queue_init(3), and the ring takes only reads, writes, syncs and allocation of files that are open, and what
/// sockets need that are open. A kernel without restrictions gives one without.
int restricted_queue_init(unsigned entries, io_uring* ring, unsigned flags);
/// False once a ring was made that has none.
[[nodiscard]] bool rings_are_restricted() noexcept;

} // namespace vtpmd
