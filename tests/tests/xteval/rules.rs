//! The corpus: what rules ask for. `?`: an evaluator cannot know; the word after it is part of the reason it must give.

/// For both families, at mangle PREROUTING.
pub(crate) const COMMON: &[&str] = &[
    "-i r0",
    "-i r+",
    "-i r1",
    "! -i r0",
    "! -i r1",
    "! -i x+",
    "-p tcp",
    "! -p tcp",
    "-p udp",
    "-p 132",
    "-p tcp -m tcp --dport 80",
    "-p tcp -m tcp ! --dport 80",
    "-p tcp -m tcp --sport 1000:2000",
    "-p tcp -m tcp --sport 1500 --dport 80",
    "-p tcp -m tcp --tcp-flags SYN,ACK SYN",
    "-p tcp -m tcp --tcp-flags ALL NONE",
    "-p tcp -m tcp --syn",
    "-p tcp -m tcp ! --syn",
    "-p tcp -m tcp --tcp-option 2",
    "-p tcp -m tcp ! --tcp-option 2",
    "-p tcp -m tcp --tcp-option 8",
    "-p tcp -m tcp --dport 80 --tcp-option 3",
    "-p udp -m udp --dport 53",
    "-p udp -m udp --sport 5000 --dport 53:60",
    "-p udp -m udp ! --sport 5000",
    "-p sctp -m sctp --dport 9899",
    "-p sctp -m sctp ! --sport 9899",
    "-p sctp -m sctp --chunk-types any INIT,DATA",
    "-p sctp -m sctp --chunk-types all SACK,DATA",
    "-p sctp -m sctp --chunk-types only DATA:BE",
    "-p sctp -m sctp ! --chunk-types any INIT",
    "-p tcp -m multiport --dports 22,80,443",
    "-p tcp -m multiport ! --dports 22,80:90",
    "-p tcp -m multiport --sports 1024:65535",
    "-p udp -m multiport --ports 53,5001",
    "-p udp -m multiport ! --ports 53,5000",
    "-p sctp -m multiport --dports 9899",
    "-p esp -m esp --espspi 256:512",
    "-m mac --mac-source 02:00:00:00:0a:00",
    "-m mac ! --mac-source 02:00:00:00:0a:00",
    "-m mark --mark 0x0",
    "-m mark ! --mark 0x0/0xff",
    "-m mark --mark 0x1/0x1",
    "-m length --length 40:60",
    "-m length ! --length 0:100",
    "-m dscp --dscp 0x2e",
    "-m dscp ! --dscp 0x00",
    "-m tos --tos 0x10/0x3f",
    "-m tos ! --tos 0x00/0xff",
    "-p tcp -m ecn --ecn-tcp-cwr",
    "-p tcp -m ecn ! --ecn-tcp-ece",
    "-m ecn --ecn-ip-ect 1",
    "-m ecn ! --ecn-ip-ect 0",
    "-p tcp --tcp-flags SYN,RST SYN -m tcpmss --mss 1400:1500",
    "-p tcp --tcp-flags SYN,RST SYN -m tcpmss ! --mss 1400:1500",
    "-m pkttype --pkt-type unicast",
    "-m pkttype ! --pkt-type broadcast",
    "-m addrtype --dst-type LOCAL",
    "-m addrtype ! --dst-type LOCAL",
    "-m addrtype --dst-type MULTICAST",
    "-m addrtype --src-type UNICAST --dst-type UNICAST",
    "-m addrtype --src-type LOCAL",
    "-m addrtype --dst-type LOCAL --limit-iface-in",
    "-m rpfilter",
    "-m rpfilter --invert",
    "-m rpfilter --loose",
    "-m rpfilter --accept-local",
    "-m string --string needle --algo bm",
    "-m string --string needle --algo kmp --from 40 --to 200",
    "-m string --string NEEDLE --algo bm --icase",
    "-m string ! --string needle --algo kmp",
    "-m string --hex-string |0001ff| --algo bm",
    "-m comment --comment always",
    "-m statistic --mode random --probability 1",
    "-m statistic --mode nth --every 1 --packet 0",
    "-m recent --set --name seen",
    "-m devgroup --src-group 0x7",
    "-m devgroup ! --src-group 0x7/0xf",
    "-m physdev --physdev-in r0",
    "-m physdev ! --physdev-in r0",
    "-m physdev ! --physdev-is-in",
    "-m u32 --u32 0>>28=4",
    "? -m limit --limit 1/hour --limit-burst 30",
    "? -m statistic --mode nth --every 3 --packet 0",
    "? -m recent --rcheck --name seen --hitcount 3",
    "? -m hashlimit --hashlimit-above 1/sec --hashlimit-mode srcip --hashlimit-name h",
    "? -m quota --quota 100000",
    "? -m time --timestart 00:00 --timestop 23:59",
    "? -m cpu --cpu 0",
    "? -m policy --dir in --pol none",
];

/// For IPv4.
pub(crate) const IPV4: &[&str] = &[
    "-s 10.1.0.1",
    "! -s 10.1.0.1",
    "-s 10.1.0.0/24 -d 10.2.0.1",
    "-d 10.0.0.0/8",
    "! -d 10.2.0.0/255.255.0.255",
    "-f",
    "! -f",
    "-p icmp",
    "-p icmp -m icmp --icmp-type echo-request",
    "-p icmp -m icmp ! --icmp-type echo-request",
    "-p icmp -m icmp --icmp-type 3/1",
    "-p icmp -m icmp --icmp-type any",
    "-p ah -m ah --ahspi 1000",
    "-m ttl --ttl-eq 64",
    "-m ttl --ttl-lt 64",
    "-m ttl --ttl-gt 10",
    "-m ttl ! --ttl-eq 64",
    "-m iprange --src-range 10.1.0.0-10.1.0.5",
    "-m iprange ! --dst-range 10.2.0.0-10.2.0.5",
    "-m u32 --u32 6&0xFF=6",
    "-m u32 --u32 0>>22&0x3C@0>>16=1500",
    "-m u32 --u32 4&0x1FFF=0&&0&0xFFFF=40:80",
    "-m u32 ! --u32 100=1",
    "-m addrtype --dst-type BROADCAST",
    "-m set --match-set ip4 src",
    "-m set ! --match-set ip4 src",
    "-m set --match-set net4 dst",
    "-m set --match-set net4 dst --return-nomatch",
    "-m set --match-set port4 src,dst",
    "-m set --match-set port4 src",
    "-m set --match-set iface4 src,src",
    "-m set --match-set netport4 dst,src",
    "-m set --match-set trip4 src,dst,dst",
    "-m set --match-set tripnet4 src,dst,dst",
    "-m set --match-set map4 dst",
    "-m set --match-set ports dst",
    "-m set --match-set list4 src,dst",
    "-m set ! --match-set list4 src,dst",
    "-m set --match-set macs4 src,src",
];

/// For IPv6.
pub(crate) const IPV6: &[&str] = &[
    "-s fd01::1",
    "! -s fd01::1",
    "-s fd01::/64 -d fd02::1",
    "-d fd00::/8",
    "-p icmpv6",
    "-p icmpv6 -m icmp6 --icmpv6-type echo-request",
    "-p icmpv6 -m icmp6 ! --icmpv6-type echo-request",
    "-p icmpv6 -m icmp6 --icmpv6-type 1/4",
    "-m hl --hl-eq 64",
    "-m hl --hl-lt 64",
    "-m hl --hl-gt 10",
    "-m iprange --src-range fd01::-fd01::5",
    "-m iprange ! --dst-range fd02::-fd02::5",
    "-m u32 --u32 6>>24=6",
    "-m addrtype --dst-type UNICAST",
    "-m set --match-set ip6 src",
    "-m set ! --match-set ip6 src",
    "-m set --match-set net6 dst",
    "-m set --match-set port6 src,dst",
    "-m set --match-set ports dst",
    "-m hbh",
    "-m hbh --hbh-len 8",
    "-m hbh ! --hbh-len 8",
    "-m hbh --hbh-opts 1:4",
    "-m hbh --hbh-opts 1",
    "-m hbh --hbh-opts 5:2,1",
    "-m hbh --hbh-opts 0,0,5:2",
    "-m hbh --hbh-opts 5:2,0,0,1",
    "-m hbh --hbh-len 16 --hbh-opts 30:5,1",
    "-m dst",
    "-m dst --dst-len 8",
    "-m dst --dst-opts 1:4",
    "-m dst --dst-opts 1:3",
    "-m dst --dst-len 72 --dst-opts 30:66,0,0",
    "-m frag",
    "-m frag --fragid 9",
    "-m frag ! --fragid 0:8",
    "-m frag --fragres",
    "-m frag --fragfirst",
    "-m frag --fragmore",
    "-m frag --fraglast",
    "-m frag --fragfirst --fragmore",
    "-m rt",
    "-m rt --rt-type 0",
    "-m rt ! --rt-type 0",
    "-m rt --rt-segsleft 1:2",
    "-m rt ! --rt-segsleft 0",
    "-m rt --rt-type 0 --rt-len 40",
    "-m rt --rt-type 0 --rt-0-res",
    "-m rt --rt-type 0 --rt-0-addrs fd03::1,fd03::2",
    "-m rt --rt-type 0 --rt-0-addrs fd03::1",
    "-m rt --rt-type 0 --rt-0-addrs fd03::2 --rt-0-not-strict",
    "-m rt --rt-type 0 --rt-0-addrs fd03::2,fd03::1 --rt-0-not-strict",
    "-m rt --rt-type 0 --rt-0-addrs fd03::1,fd03::2 --rt-0-not-strict",
    "-m ah --ahspi 1000",
    "-m ah ! --ahspi 1:999",
    "-m ah --ahspi 1000 --ahlen 16",
    "-m ah --ahspi 1000 ! --ahlen 16",
    "-m ah --ahspi 1:2000 --ahres",
    "-p ipv6-mh -m mh --mh-type 5",
    "-p ipv6-mh -m mh ! --mh-type 0:4",
    "-p ipv6-mh -m mh",
    "-p ipcomp -m ipcomp --ipcompspi 0x5",
    "-p ipcomp -m ipcomp ! --ipcompspi 0x1:0x4",
    // After those that drop what is cut.
    "-m ipv6header --header hop --soft",
    "-m ipv6header --header dst",
    "-m ipv6header ! --header dst,route --soft",
    "-m ipv6header --header hop,dst,prot",
    "-m ipv6header --header dst,route,prot",
    "-m ipv6header ! --header prot",
    "-m ipv6header --header none --soft",
    "-m ipv6header --header esp",
    "-m ipv6header --header auth,prot",
    "-m ipv6header --header frag --soft",
];

/// The ipsets that the rules name.
pub(crate) const SETS: &str = "\
create ip4 hash:ip
add ip4 10.1.0.1
create net4 hash:net
add net4 10.0.0.0/8
add net4 10.2.0.0/24 nomatch
add net4 10.2.0.1/32
create port4 hash:ip,port
add port4 10.1.0.1,tcp:80
add port4 10.1.0.1,udp:53
add port4 10.1.0.1,icmp:8/0
add port4 10.1.0.1,esp:0
create iface4 hash:net,iface
add iface4 10.1.0.0/16,r0
add iface4 10.1.0.0/24,r1
add iface4 10.77.0.0/16,r0
create netport4 hash:net,port
add netport4 10.2.0.0/16,tcp:1500
create trip4 hash:ip,port,ip
add trip4 10.1.0.1,udp:53,10.2.0.1
create tripnet4 hash:ip,port,net
add tripnet4 10.1.0.1,tcp:80,10.2.0.0/16
add tripnet4 10.1.0.1,tcp:80,10.2.0.0/24 nomatch
create map4 bitmap:ip range 10.2.0.0/24
add map4 10.2.0.1
create macs4 bitmap:ip,mac range 10.1.0.0/24
add macs4 10.1.0.1,02:00:00:00:0a:00
add macs4 10.1.0.7,02:00:00:00:0a:07
create ports bitmap:port range 0-1000
add ports 53
add ports 80
create ip6 hash:ip family inet6
add ip6 fd01::1
create net6 hash:net family inet6
add net6 fd00::/8
add net6 fd02::/64 nomatch
create port6 hash:ip,port family inet6
add port6 fd01::1,tcp:80
add port6 fd01::1,udp:53
create list4 list:set
add list4 ip4
add list4 port4
";
