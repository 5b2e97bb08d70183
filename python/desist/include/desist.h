/* Let native code see whether it is to stop: one load, no Python, no lock.
 *
 * The flag is the value of CancelToken.flag, an integer. It is valid for as long as that token is
 * kept; it is set once and never cleared. Deadlines set it, too.
 *
 *     for (i = 0; i < n && !desist_is_cancelled(flag); i++) ...
 */
#ifndef DESIST_H
#define DESIST_H

#include <stdint.h>

static inline int desist_is_cancelled(const void *flag)
{
#if defined(__GNUC__) || defined(__clang__)
    return (int)(__atomic_load_n((const uint32_t *)flag, __ATOMIC_ACQUIRE) & 1u);
#else
    /* An aligned load of 32 bits is one access, and `volatile` orders it where that is MSVC. */
    return (int)(*(const volatile uint32_t *)flag & 1u);
#endif
}

#endif
