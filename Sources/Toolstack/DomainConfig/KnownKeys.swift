// Every key of xl.cfg(5), and which of them have an effect.
// Source: xl.cfg(5) of Xen 4.17.
// Not modelled: keys under `ignored`; using one gives one warning.
// Quirks: `engine` is ours.

enum KnownKeys {
    /// Keys that `ConfigReader` reads itself.
    static let effective: Set<String> = [
        "acpi", "apic", "boot", "builder", "cmdline", "device_model_version", "disk", "engine", "extra", "hpet",
        "kernel",
        "localtime", "maxmem", "maxvcpus", "memory", "name", "nographic", "nx", "on_crash", "on_poweroff", "on_reboot",
        "on_soft_reset", "on_watchdog", "pae", "ramdisk", "root", "rtc_timeoffset", "serial", "stdvga", "type",
        "usbdevice",
        "uuid", "vcpus", "vfb", "vga", "videoram", "vif", "vnc", "vncdisplay", "vnclisten", "vncpasswd", "vncunused",
        "xen_platform_pci", "bootloader", "bootloader_args", "bios", "run_hotplug_scripts", "pvh",
    ]

    /// Known keys without effect. Switches among them agree with what we do when they are 0: no warning then.
    static let ignored: Set<String> = [
        "acpi_firmware", "acpi_laptop_slate", "acpi_s3", "acpi_s4", "altp2m", "altp2mhvm", "argo", "autoballoon",
        "bios_path_override", "blkdev_start", "bootargs", "cap", "channel", "claim_mode", "cpu_weight", "cpuid", "cpus",
        "cpus_soft", "device_model", "device_model_args", "device_model_args_hvm", "device_model_args_pv",
        "device_model_override", "device_model_ssid_label", "device_model_ssidref", "device_model_stubdomain_override",
        "device_model_stubdomain_seclabel", "device_model_user", "device_tree", "dm_restrict", "driver_domain", "dtdev",
        "e820_host", "event_channels", "exec_ssidref", "features", "gfx_passthru", "gic_version", "hap", "hdtype",
        "init_seclabel", "iomem", "ioports", "irqs", "keymap", "latency", "legacy_vga", "loader", "max_event_channels",
        "max_grant_frames", "max_grant_version", "max_maptrack_frames", "mca_caps", "mmio_hole", "ms_vm_genid",
        "msr_relaxed", "nestedhvm", "nomigrate", "oos", "opengl", "p9", "passthrough", "pci", "pci_msitranslate",
        "pci_permissive", "pci_power_mgmt", "pci_seize", "period", "pool", "pvcalls", "pvshim", "pvshim_cmdline",
        "pvshim_extra", "pvshim_path", "rdm", "rdm_mem_boundary", "sched", "sdl", "seclabel", "shadow_memory", "slice",
        "smbios", "smbios_firmware", "soundhw", "spice", "spice_clipboard_sharing", "spice_image_compression",
        "spice_streaming_video", "spiceagent_mouse", "spicedisable_ticketing", "spicehost", "spicepasswd", "spiceport",
        "spicetls_port", "spiceusbredirection", "spicevdagent", "ssidref", "stubdomain_cmdline", "stubdomain_kernel",
        "stubdomain_memory", "stubdomain_ramdisk", "suppress_spurious_page_faults", "suspend_cancel", "system_firmware",
        "tee", "timer_mode", "tsc_mode", "tsc_native", "usb", "usbctrl", "usbdev", "usbversion", "vcpu_affinity",
        "vdispl",
        "vendor_device", "videoram_mb", "virtio", "viridian", "vkb", "vkb_device", "vmtrace_buf_kb", "vncconsole",
        "vncviewer", "vnuma", "vpmu", "vpt_align", "vscsi", "vsnd", "vtpm", "vuart", "xauthority",
        "xend_suspend_evtchn_compat", "display", "guest_os_type", "extra_hvm", "nodemigrate", "xenstore_quota",
    ]

    /// The known key that `key` is most likely meant to be: one slip of the pen away.
    static func nearest(to key: String) -> String? {
        let low = key.lowercased()
        if effective.contains(low) { return low }
        return effective.sorted().first { distance(low, $0) <= (low.count > 4 ? 2 : 1) }
    }

    /// Edits between two words (Levenshtein).
    private static func distance(_ first: String, _ second: String) -> Int {
        let (first, second) = (Array(first.utf8.prefix(40)), Array(second.utf8))
        var row = Array(0...second.count)
        for (line, left) in first.enumerated() {
            var diagonal = row[0]
            row[0] = line + 1
            for (column, right) in second.enumerated() {
                let edit = min(row[column] + 1, row[column + 1] + 1, diagonal + (left == right ? 0 : 1))
                diagonal = row[column + 1]
                row[column + 1] = edit
            }
        }
        return row[second.count]
    }
}
