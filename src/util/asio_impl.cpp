// The one unit that compiles Asio.
//
// Asio's io_uring back end asks for 16384 submission entries, 1.6 MB of ring in every process. A process per vTPM
// cannot afford that and never has more than a few dozen operations in flight, so the request is clamped here.
// When the queue is full Asio submits and goes on, so a small ring costs nothing but an extra system call.
#ifdef BOOST_ASIO_HAS_IO_URING
#include "util/ring_restrictions.hpp"

#include <algorithm>
#include <liburing.h>

namespace {
constexpr unsigned ring_entries = 256;

int clamped_queue_init(unsigned entries, struct io_uring* ring, unsigned flags) {
    return vtpmd::restricted_queue_init(std::min(entries, ring_entries), ring, flags);
}
} // namespace
#define io_uring_queue_init clamped_queue_init
#endif

#include <boost/asio/impl/src.hpp>

#undef io_uring_queue_init // other files of a unity build mean liburing's
