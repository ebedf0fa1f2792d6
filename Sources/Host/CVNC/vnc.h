#include <rfb/rfb.h>
#include <rfb/keysym.h>

/// rfbInitServer is a macro that says how the library was built.
static inline void vnc_start(rfbScreenInfoPtr screen) { rfbInitServer(screen); }
