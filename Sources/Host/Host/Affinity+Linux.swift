// Which of the host's processors a thread may run on.
// Source: sched_setaffinity(2).
// Modelled: hard affinity. Not modelled: soft affinity, which Linux does not have.
// Quirks: a set is read and written as a whole; processors above 1023 are out of reach.
internal import CHost

public enum Affinity {
    private static let bytes = 128

    /// The processors that `thread` may run on; empty if there is no such thread.
    public static func read(_ thread: Int32) -> [Int] {
        var bits = [UInt8](repeating: 0, count: bytes)
        guard chost_affinity(thread, &bits, bytes, 0) == 0 else { return [] }
        return (0..<bytes * 8).filter { bits[$0 / 8] & 1 << ($0 % 8) != 0 }
    }

    /// Lets `thread` run on `processors` only.
    public static func write(_ thread: Int32, _ processors: [Int]) throws(HostFailure) {
        var bits = [UInt8](repeating: 0, count: bytes)
        for number in processors where (0..<bytes * 8).contains(number) { bits[number / 8] |= 1 << (number % 8) }
        let result = chost_affinity(thread, &bits, bytes, 1)
        guard result == 0 else { throw HostFailure("pin", "thread \(thread)", result: Int(result)) }
    }
}
