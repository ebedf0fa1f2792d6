#!/usr/bin/perl
# Stands in for hypervisor, device-model and backend in tests of the toolstack: it speaks their protocols and does
# nothing. It is called by either name; `mode-NAME` beside it says what goes wrong: fail, die, hang, exit REASON,
# late (fails after its peer has noticed), blame (says that its peer has failed).
use strict;
use warnings;
use Fcntl;
use IO::Select;
use IO::Socket::UNIX;
use POSIX ();
$| = 1;
$SIG{PIPE} = 'IGNORE';
my ($folder, $name) = $0 =~ m{^(.*)/([^/]+)$};
my $isHypervisor = $name eq 'hypervisor';
my $isBackend = $name eq 'backend';
my %option = (paused => 0);
while (defined(my $word = shift @ARGV)) {
    if ($word eq '--directory') { $option{directory} = shift @ARGV }
    elsif ($word eq '--paused') { $option{paused} = 1 }
}
my $directory = $option{directory} or die "no directory\n";
open(my $status, '>&=', 3) or die "no status pipe\n";
open(my $peer, '+<&=', 4) or die "no peer\n";
# The hypervisor has a socket to each of the others; the back ends have two connections to the store
# and one to the monitor.
my $last = $isHypervisor ? 5 : $isBackend ? 7 : 4;
my $other;
open($other, '+<&=', 5) if $isHypervisor;
$status->autoflush(1);
my $mode = '';
if (open(my $file, '<', "$folder/mode-$name")) { $mode = <$file> // ''; chomp $mode }
print STDERR "$name starts\n";
for my $number (glob "/proc/$$/fd/*") {
    my ($own) = $number =~ m{/(\d+)$};
    print STDERR "inherited $own\n" if $own > $last && (readlink($number) // '') =~ /pipe|socket|xl/;
}
if ($mode eq 'die') { print STDERR "dying early\n"; kill 'SEGV', $$; sleep 10 }
if ($mode eq 'fail') {
    print STDERR "the disk is made of cheese\n";
    print $status "{\"error\":\"the disk is made of cheese\"}\n";
    exit 1;
}
if ($mode eq 'blame') {
    sysread($peer, my $nothing, 1);
    print $status "{\"error\":\"the device model ended before it was ready\"}\n";
    exit 1;
}
if ($mode eq 'late') {
    close $peer;
    POSIX::close(4);
    select(undef, undef, undef, 0.2);
    print $status "{\"error\":\"the port is taken\"}\n";
    exit 1;
}
if ($mode eq 'hang') { sleep 1000 }
my $server = IO::Socket::UNIX->new(
    Local => "$directory/" . ($isHypervisor ? 'control' : $name) . '.sock', Listen => 5) or die "no socket\n";
my $select = IO::Select->new($server, $peer, $other // ());
my $terminal;
if ($name eq 'device-model') {
    sysopen($terminal, '/dev/ptmx', O_RDWR | O_NOCTTY) or die "no pty\n";
    my $zero = pack('i', 0);
    my $number = pack('i', 0);
    ioctl($terminal, 0x40045431, $zero) or die "unlock\n";
    ioctl($terminal, 0x80045430, $number) or die "number\n";
    my $line = POSIX::Termios->new;
    $line->getattr(fileno $terminal);
    $line->setlflag(0);
    $line->setoflag(0);
    $line->setiflag(0);
    $line->setattr(fileno $terminal, POSIX::TCSANOW());
    symlink('/dev/pts/' . unpack('i', $number), "$directory/console");
    $select->add($terminal);
    open(my $vnc, '>', "$directory/vnc");
    print $vnc "127.0.0.1 5907\n";
    close $vnc;
    syswrite($terminal, "login: ");
} elsif ($isHypervisor) {
    open(my $bios, '>', "$directory/bios.log");
    print $bios "SeaBIOS says hello\n";
    close $bios;
}
my $places = '{"storeFrame":1044476,"storePort":1,"consoleFrame":1044479,"consolePort":2}';
print $status $isHypervisor ? "{\"ready\":true,\"places\":$places}\n" : "{\"ready\":true}\n";
my $reboots = 0;
my $ends = '';
my $state = $option{paused} ? 'p' : 'r';

sub finish {
    print $status "{\"exit\":\"$_[0]\"}\n";
    exit 0;
}

sub answer {
    my ($line) = @_;
    my ($command) = $line =~ /"command":"([^"]+)"/ or return '{"error":"what?"}';
    if ($command eq 'status' && $isHypervisor) {
        return "{\"ok\":true,\"state\":\"$state\",\"cpuSeconds\":1.5,\"vcpus\":[{\"cpuSeconds\":1.5,\"state\":\"$state\"}],"
            . '"memoryKiB":65536,"instructions":12}';
    }
    if ($command eq 'pause') { $state = 'p' }
    elsif ($command eq 'unpause') {
        $state = 'r';
        $ends = $1 if $mode =~ /^exit (\S+)/;
    }
    elsif ($command eq 'reboot' && $isHypervisor) { $reboots = 1 }
    elsif ($command eq 'powerButton' && $name eq 'device-model') { syswrite($peer, 'poweroff') }
    elsif ($command =~ /^cd-(insert|eject)$/) { print STDERR "$line\n" }
    elsif ($command eq 'block-attach' && $isBackend) { print STDERR "$line\n" }
    else { return '{"error":"unknown command"}' }
    return '{"ok":true}';
}

while (my @ready = $select->can_read) {
    for my $handle (@ready) {
        if ($handle == $server) { $select->add($server->accept); next }
        my $count = sysread($handle, my $bytes, 4096);
        if ($handle == $peer || defined $other && $handle == $other) {
            if (!$count) { finish('crash') if $isHypervisor; exit 0 }
            finish($bytes) if $isHypervisor;
        } elsif (defined $terminal && $handle == $terminal) {
            if ($count) { syswrite($terminal, uc $bytes) } else { select(undef, undef, undef, 0.02) }
        } elsif (!$count) {
            $select->remove($handle);
            close $handle;
        } else {
            syswrite($handle, answer($_) . "\n") for split /\n/, $bytes;
            finish('reboot') if $reboots;
            finish($ends) if $ends;
        }
    }
}
