// RFB's extended key event: keys by scan code, whatever layout the client has.
// Source: rfbproto, "QEMU Extended Key Event Message", pseudo-encoding -258, message 255 subtype 0.
// Modelled: announcement and message. Not modelled: other subtypes of message 255 (audio), which end the connection.
// Quirks: one registration serves every server of the process (libvncserver keeps extensions globally).

internal import CVNC

/// The protocol extension that libvncserver is given.
enum ExtendedKeys {
    private static let encoding: Int32 = -258

    static func register() { _ = registered }

    /// Made once and kept for the life of the process, as libvncserver wants it.
    private static let registered: Bool = {
        let encodings = UnsafeMutablePointer<Int32>.allocate(capacity: 2)
        unsafe encodings[0] = encoding
        unsafe encodings[1] = 0
        let extension_ = UnsafeMutablePointer<rfbProtocolExtension>.allocate(capacity: 1)
        unsafe extension_.initialize(to: rfbProtocolExtension())
        unsafe extension_.pointee.pseudoEncodings = encodings
        unsafe extension_.pointee.enablePseudoEncoding = { client, _, number in
            guard number == ExtendedKeys.encoding else { return 0 }
            return unsafe ExtendedKeys.announce(client) ? 1 : 0
        }
        unsafe extension_.pointee.handleMessage = { client, _, message in
            guard unsafe message?.pointee.type == 255 else { return 0 }
            return unsafe ExtendedKeys.take(client) ? 1 : 0
        }
        unsafe rfbRegisterProtocolExtension(extension_)
        return true
    }()

    /// An update of one empty rectangle says that the server knows the message.
    @unsafe private static func announce(_ client: rfbClientPtr?) -> Bool {
        let place = [CChar](repeating: 0, count: 8)
        let update = [0, 0, 0, 1] + place + [-1, -1, -2, -2]
        return unsafe rfbWriteExact(client, update, Int32(update.count)) > 0
    }

    /// The rest of a message: subtype, down flag, keysym, key number.
    @unsafe private static func take(_ client: rfbClientPtr?) -> Bool {
        var rest = [CChar](repeating: 0, count: 11)
        guard unsafe rfbReadExact(client, &rest, Int32(rest.count)) > 0, rest[0] == 0 else { return false }
        let isDown = rest[1] != 0 || rest[2] != 0
        let number = rest[7...10].reduce(UInt32(0)) { $0 << 8 | UInt32(UInt8(bitPattern: $1)) }
        if let key = UInt8(exactly: number), key != 0 { unsafe VNCServer.of(client)?.takeKey(key, isDown: isDown) }
        return true
    }
}
