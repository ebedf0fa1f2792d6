// A PV domain's screen and keyboard over VNC.
// Source: xl.cfg(5), "vfb"; Linux's xen-fbfront and xen-kbdfront.
// Covered: what the guest writes on its virtual terminal is on the screen; keys typed there arrive.
// Quirks: the screen's text is read by the VGA font, which Linux's frame buffer console uses, too.

import Foundation
import Testing

extension Guests {
    @Suite("A PVH guest's frame buffer", .serialized) struct FrameBufferTests {
        @Test("Its terminal is on VNC, and takes keys") func terminal() throws {
            let domain = try Domain(
                "vfb",
                """
                type='pvh'
                memory=256
                kernel='\(Site.guests.path)/vmlinuz'
                ramdisk='\(Site.guests.path)/initrd.gz'
                cmdline='console=tty0 console=hvc0'
                vfb=['vnc=1,vncunused=1']
                """)
            let console = try domain.console()
            try console.wait(for: "guest#", within: 300)
            #expect(domain.vncPort >= 5900)
            _ = try console.run("printf '\\033[2J\\033[HThe frame buffer speaks to its viewers\\n' > /dev/tty1")
            try domain.waitForScreen("The frame buffer speaks to its viewers", within: 60)
            #expect(try domain.viewer().width == 800)
            console.send("head -n 1 /dev/tty1 > /typed &\n")
            try console.wait(for: "guest#")
            let viewer = try domain.viewer()
            for key in "viewer" { try viewer.key(UInt32(key.asciiValue ?? 0)) }
            try viewer.key(0xFF0D)
            let end = Date().addingTimeInterval(20)
            var text = ""
            while !text.contains("viewer"), Date() < end { text = try console.run("cat /typed") }
            #expect(text.contains("\nviewer") || text.contains("viewer\r"))
        }
    }
}
