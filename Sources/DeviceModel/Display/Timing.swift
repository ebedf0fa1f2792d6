// Where the beam is: input status 1's retrace bits from guest time.
// Source: IBM VGA technical reference, CRT controller, and input status register 1.
// Modelled: totals, display ends, vertical retrace, dot clock. Not modelled: horizontal skew, retrace's diagnostic bits.
// Quirks: with a VBE mode, or before any mode is set, timings are those of 60 or 70 frames a second.

internal import Machine

/// Times of one frame, in nanoseconds.
struct Timing {
    var line: UInt64
    /// The part of a line that shows pixels.
    var lineShown: UInt64
    var lines: UInt64
    var linesShown: UInt64
    var retrace: ClosedRange<UInt64>

    init(_ state: VGA.State) {
        if state.dispi.isEnabled {
            let shown = max(UInt64(state.dispi.height), 1)
            self = Timing(frame: 16_666_667, shown: shown)
            return
        }
        let crtc = state.crtc
        let high = Int(crtc[7])
        let total = (Int(crtc[6]) | (high & 1) << 8 | (high & 0x20) << 4) + 2
        let shown = (Int(crtc[0x12]) | (high & 2) << 7 | (high & 0x40) << 3) + 1
        let start = Int(crtc[0x10]) | (high & 4) << 6 | (high & 0x80) << 2
        let retraceLines = max((Int(crtc[0x11] & 15) - start) & 15, 1)
        let characters = Int(crtc[0]) + 5
        let charactersShown = min(Int(crtc[1]) + 1, characters)
        guard total >= 64, shown < total, start >= shown, characters >= 16 else {
            self = Timing(frame: 14_268_000, shown: 400)
            return
        }
        let dots = (state.sequencer[1] & 1 != 0 ? 8 : 9) * (state.sequencer[1] & 8 != 0 ? 2 : 1)
        let kilohertz = (state.miscellaneous >> 2) & 3 == 1 ? 28_322 : 25_175
        line = UInt64(characters * dots * 1_000_000 / kilohertz)
        lineShown = UInt64(charactersShown * dots * 1_000_000 / kilohertz)
        (lines, linesShown) = (UInt64(total), UInt64(shown))
        retrace = UInt64(start)...UInt64(start + retraceLines - 1)
    }

    /// A frame with an eighth of its lines unseen.
    private init(frame: UInt64, shown: UInt64) {
        lines = shown + max(shown / 8, 8)
        line = max(frame / lines, 10)
        lineShown = line * 4 / 5
        linesShown = shown
        retrace = (shown + 2)...(shown + 5)
    }

    /// Input status 1: bit 0, no pixels are shown now; bit 3, vertical retrace.
    func status(at now: Instant) -> UInt8 {
        let place = now.nanoseconds % (line * lines)
        let (row, column) = (place / line, place % line)
        let isBlank = row >= linesShown || column >= lineShown
        return (isBlank ? 0x01 : 0) | (retrace.contains(row) ? 0x08 : 0)
    }

    /// Frames since time zero.
    func frame(at now: Instant) -> UInt64 { now.nanoseconds / (line * lines) }
}
