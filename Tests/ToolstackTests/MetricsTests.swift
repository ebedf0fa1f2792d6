import Testing

@testable import Toolstack

@Suite("figures for Prometheus") struct MetricsTests {
    @Test("families keep together, labels are quoted")
    func text() {
        var metrics = Metrics()
        metrics.add("a_total", "As.", [("domain", "x\"y\\z")], 3)
        metrics.add("b", "Bs.", as: "gauge", [("domain", "n")], 0.25)
        metrics.add("a_total", "As.", [("domain", "n"), ("vcpu", "1")], 4)
        #expect(
            metrics.text == """
                # HELP a_total As.
                # TYPE a_total counter
                a_total{domain="x\\"y\\\\z"} 3
                a_total{domain="n",vcpu="1"} 4
                # HELP b Bs.
                # TYPE b gauge
                b{domain="n"} 0.25

                """)
    }
}
