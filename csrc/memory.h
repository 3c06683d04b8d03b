// What the operating system can be told about memory.
#pragma once
#include <stdint.h>

namespace gossamer {

// A large output that was just allocated has no pages yet. Asks for pages of 2 MB: filling 600 MB of 4 KB pages costs
// more than a product that writes them (0.27 s, measured). Does nothing for small ones, nor where there is no such call.
void advise_large_pages(void* p, int64_t bytes);

}  // namespace gossamer
