// Standard input, output and errors, as programs take them for granted.
#pragma once

namespace vtpmd {

/// Opens those that are closed on /dev/null: otherwise the next file that is opened, the store or an image, has the
/// number of standard error, and the log is written into it. The first thing that a program does. False: that is not
/// possible here.
[[nodiscard]] bool open_standard_descriptors() noexcept;

} // namespace vtpmd
