//! libpcap's compiler of filter expressions.
//!
//! The library is opened when an expression is given and not before: fwtrace stays one file that runs
//! where there is no libpcap, whose soname differs between distributions besides.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libc::sock_filter;
use libloading::Library;

use super::Error;

/// Names of the library: Debian's and Ubuntu's, everyone else's, the development link.
const NAMES: [&str; 3] = ["libpcap.so.0.8", "libpcap.so.1", "libpcap.so"];
/// `DLT_EN10MB`: Ethernet (pcap/dlt.h, libpcap 1.10).
pub(super) const ETHERNET: c_int = 1;
/// What an accepting program returns, as tcpdump's `-d` shows it.
const SNAPLEN: c_int = 262_144;
/// `PCAP_NETMASK_UNKNOWN` (pcap/pcap.h): `ip broadcast` is refused, with libpcap's words.
const NO_NETMASK: c_uint = 0xffff_ffff;

/// `struct bpf_program` (pcap/bpf.h). Its instructions have the layout of the kernel's sock_filter.
#[repr(C)]
struct Program {
    len: c_uint,
    instructions: *mut sock_filter,
}

/// A compiled expression, and its text as `tcpdump -d` prints it.
pub(super) struct Compiled {
    pub(super) program: Vec<sock_filter>,
    pub(super) listing: String,
}

/// The functions of libpcap that are used here.
struct Functions {
    open_dead: unsafe extern "C" fn(c_int, c_int) -> *mut c_void,
    compile: unsafe extern "C" fn(*mut c_void, *mut Program, *const c_char, c_int, c_uint) -> c_int,
    geterr: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    freecode: unsafe extern "C" fn(*mut Program),
    close: unsafe extern "C" fn(*mut c_void),
    image: unsafe extern "C" fn(*const sock_filter, c_int) -> *const c_char,
    /// Keeps the functions in memory.
    _library: Library,
}

impl Functions {
    #[expect(
        unsafe_code,
        reason = "a library is opened and its functions are found"
    )]
    fn load() -> Result<Self, Error> {
        let mut cause = String::new();
        for name in NAMES {
            // SAFETY: libpcap has no initialiser that asks anything of its caller.
            let library = match unsafe { Library::new(name) } {
                Ok(library) => library,
                Err(err) => {
                    cause = err.to_string();
                    continue;
                }
            };
            // SAFETY: the types are those of pcap/pcap.h and pcap/bpf.h, the same in every libpcap 1.x.
            let found = unsafe {
                (|| {
                    Ok::<_, libloading::Error>((
                        *library.get(c"pcap_open_dead")?,
                        *library.get(c"pcap_compile")?,
                        *library.get(c"pcap_geterr")?,
                        *library.get(c"pcap_freecode")?,
                        *library.get(c"pcap_close")?,
                        *library.get(c"bpf_image")?,
                    ))
                })()
            };
            match found {
                Ok((open_dead, compile, geterr, freecode, close, image)) => {
                    return Ok(Self {
                        open_dead,
                        compile,
                        geterr,
                        freecode,
                        close,
                        image,
                        _library: library,
                    });
                }
                Err(err) => cause = err.to_string(),
            }
        }
        Err(Error::NoLibpcap(cause))
    }
}

/// Has libpcap compile `text` for packets that begin as link type `link` (`DLT_*`) has it, optimised.
///
/// # Errors
/// There is no libpcap here, or it refuses the expression.
#[expect(unsafe_code, reason = "C functions are called")]
pub(super) fn compile(text: &str, link: c_int) -> Result<Compiled, Error> {
    let refused = |why: &str| Error::Refused {
        text: text.to_owned(),
        why: why.to_owned(),
    };
    let c_text = CString::new(text).map_err(|_| refused("it has a NUL character"))?;
    let pcap = Functions::load()?;
    // SAFETY: no pointers are passed.
    let handle = unsafe { (pcap.open_dead)(link, SNAPLEN) };
    if handle.is_null() {
        return Err(refused("libpcap has no memory"));
    }
    let mut compiled = Program {
        len: 0,
        instructions: std::ptr::null_mut(),
    };
    // SAFETY: the handle is open, the program and the text live through the call.
    let result =
        unsafe { (pcap.compile)(handle, &raw mut compiled, c_text.as_ptr(), 1, NO_NETMASK) };
    if result != 0 {
        // SAFETY: the text belongs to the handle, which is closed behind it.
        let why = unsafe { CStr::from_ptr((pcap.geterr)(handle)) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: it is open, and not used again.
        unsafe { (pcap.close)(handle) };
        return Err(refused(&why));
    }
    let program = if compiled.instructions.is_null() {
        Vec::new()
    } else {
        // SAFETY: libpcap says that so many instructions stand there; they are copied before it frees them.
        unsafe { std::slice::from_raw_parts(compiled.instructions, compiled.len as usize) }.to_vec()
    };
    let mut listing = String::new();
    for (instruction, number) in program.iter().zip(0..) {
        // SAFETY: the instruction lives through the call; the text is copied before the next one.
        let line = unsafe { CStr::from_ptr((pcap.image)(instruction, number)) };
        listing.push_str(line.to_string_lossy().trim_end());
        listing.push('\n');
    }
    // SAFETY: neither is used again.
    unsafe {
        (pcap.freecode)(&raw mut compiled);
        (pcap.close)(handle);
    }
    Ok(Compiled { program, listing })
}

/// libpcap's own answer, for tests.
#[cfg(test)]
#[expect(unsafe_code, reason = "C functions are called")]
pub(super) fn filter(program: &[sock_filter], packet: &[u8], wire_len: u32) -> bool {
    type BpfFilter = unsafe extern "C" fn(*const sock_filter, *const u8, c_uint, c_uint) -> c_uint;
    let length = u32::try_from(packet.len()).unwrap();
    static LIBRARY: std::sync::OnceLock<Library> = std::sync::OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let open = NAMES.iter().find_map(|name| {
            // SAFETY: as above.
            unsafe { Library::new(*name) }.ok()
        });
        open.unwrap()
    });
    // SAFETY: the type is that of pcap/bpf.h; everything passed lives through the call.
    unsafe {
        let bpf_filter = library.get::<BpfFilter>(c"bpf_filter").unwrap();
        bpf_filter(program.as_ptr(), packet.as_ptr(), wire_len, length) != 0
    }
}
