// Tests of the config grammar.
// Source: xl.cfg(5), "SYNTAX".
// Covered: values, lists, escapes, joins, overrides, places of errors, garbage.
// Quirks: the garbage is seeded, so a failure can be run again.

import DomainConfig
import TestSupport
import Testing

private func parse(_ text: String) -> ConfigFile { ConfigFile(text, source: "t.cfg") }

private func atom(_ file: ConfigFile, _ key: String) -> String? {
    guard case .atom(let text)? = file[key]?.value else { return nil }
    return text
}

private func list(_ file: ConfigFile, _ key: String) -> [String]? {
    guard case .list(let items)? = file[key]?.value else { return nil }
    return items.map { item in
        if case .atom(let text) = item.value { return text }
        return "[...]"
    }
}

@Suite("config grammar") struct ConfigFileTests {
    @Test("both quotes, numbers, comments and semicolons")
    func values() {
        let file = parse("a = 'one' # two\nb=\"x # y\"; c = 0x10 ;d=017\n# e = 1\nf = 12")
        #expect(file.errors.isEmpty)
        #expect(["a", "b", "c", "d", "f"].map { atom(file, $0) } == ["one", "x # y", "0x10", "017", "12"])
        #expect(file["e"] == nil)
    }

    @Test("escapes are C's")
    func escapes() {
        let file = parse(#"a = "x\ty\x41\101\\\"\'\n""#)
        #expect(atom(file, "a") == "x\tyAA\\\"'\n")
        #expect(parse(#"a = "\q""#).errors.count == 1)
        #expect(parse(#"a = "\0""#).errors.count == 1)
    }

    @Test("lists take new lines, continuations, comments and a last comma")
    func lists() {
        let file = parse("disk = [ # one\n 'a', \\\n\n 'b',\n]\nx = []\ny = [ ['p','q'], 3 ]\n")
        #expect(file.errors.isEmpty)
        #expect(list(file, "disk") == ["a", "b"])
        #expect(list(file, "x") == [])
        #expect(list(file, "y") == ["[...]", "3"])
    }

    @Test("a backslash at a line's end continues the statement, CRLF is a line end")
    func continuation() {
        let file = parse("a = \\\n 'x'\r\nb = \\\r\n2\r\n")
        #expect(file.errors.isEmpty)
        #expect(atom(file, "a") == "x")
        #expect(atom(file, "b") == "2")
    }

    @Test("the last value wins, += joins strings and lists, and nothing else")
    func joins() {
        let file = parse("a = 1\na = 2\nb = 'x'\nb += 'y'\nc = ['1']\nc += ['2']\nd += 'new'\nc += 'z'\nb += ['z']")
        #expect(atom(file, "a") == "2")
        #expect(atom(file, "b") == "xy")
        #expect(list(file, "c") == ["1", "2"])
        #expect(atom(file, "d") == "new")
        #expect(file.errors.map(\.position.line) == [8, 9])
    }

    @Test("the command line wins, with and without quotes")
    func overrides() {
        var file = parse("memory = 512\nname = 'a'")
        file.override("memory=64")
        file.override("name=b c")
        file.override("disk=['file:/x,hda,w']")
        #expect(file.errors.isEmpty)
        #expect(atom(file, "memory") == "64")
        #expect(atom(file, "name") == "b c")
        #expect(list(file, "disk") == ["file:/x,hda,w"])
        file.override("disk=['x")
        #expect(file.errors.count == 1)
    }

    @Test("all errors of a file come at once, each with line and column")
    func errors() {
        let text = "name = \"a\nmemory == 128\nthis is wrong\nvcpus = 2\ndisk = [ 'a' 'b' ]\nx = {}\ny = bare\n"
        let file = parse(text)
        #expect(
            file.errors.map { [$0.position.line, $0.position.column] } == [
                [1, 8], [2, 9], [3, 6], [5, 14], [6, 5], [7, 5],
            ])
        #expect(atom(file, "vcpus") == "2")
    }

    @Test("columns count characters, not bytes")
    func columns() {
        #expect(parse("é = 1").errors.map(\.position.column) == [1])
        #expect(parse("a = ['é' x]").errors.map(\.position.column) == [10])
    }

    @Test("an open list does not swallow the statements behind it")
    func openList() {
        let file = parse("disk = [ 'a',\nname = 'x'\nmemory = 1\n")
        #expect(file.errors.map(\.position.line) == [2])
        #expect(atom(file, "memory") == "1")
    }

    @Test("lists nested without end are an error")
    func nesting() {
        #expect(parse("a = " + String(repeating: "[", count: 200_000)).errors.count == 1)
    }

    @Test("no bytes make it trap", arguments: 0..<200 as Range<UInt64>)
    func garbage(seed: UInt64) {
        var generator = Seeded(seed)
        let alphabet = Array("ab=+[],;'\"\\\n#\t x0\r-nmemory disk".utf8)
        let bytes = (0..<Int.random(in: 0...600, using: &generator)).map { _ in
            seed % 2 == 0
                ? UInt8.random(in: 0...255, using: &generator) : alphabet.randomElement(using: &generator) ?? 0
        }
        let file = ConfigFile(bytes, source: "garbage")
        #expect(file.errors.allSatisfy { $0.position.line > 0 && $0.position.column > 0 })
        _ = DomainConfig.read(file)
        _ = try? DiskSpecification(String(decoding: bytes, as: UTF8.self))
        _ = VirtualDevice(String(decoding: bytes.prefix(6), as: UTF8.self))
    }
}
