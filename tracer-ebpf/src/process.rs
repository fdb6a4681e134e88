//! The process that sent the packet, if the drop happens in its own context.

use aya_ebpf::helpers::generated::{
    bpf_get_current_pid_tgid, bpf_get_current_task_btf, bpf_get_current_uid_gid,
};
use fwtrace_abi::{ABSENT, FLAG_PROCESS, Record};

use crate::kernel::{offset, typed};

/// `PF_KTHREAD` (include/linux/sched.h, v6.18).
const PF_KTHREAD: u32 = 0x0020_0000;
/// The smallest kernel stack of the architectures fwtrace runs on (x86-64, arm64: 16 KiB).
const THREAD_SIZE: u64 = 16 * 1024;

/// Whether the program runs in the context of a process: on the current task's own kernel stack (a
/// softirq that interrupted some other process runs on the CPU's interrupt stack), and the task is no
/// kernel thread.
#[inline(always)]
pub fn is_current(stack_pointer: u64) -> bool {
    if offset!(task_stack) == ABSENT || offset!(task_flags) == ABSENT {
        return false;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task_btf() } as u64;
    let stack = typed!(task, task_stack, u64);
    stack != 0
        && stack_pointer >= stack
        && stack_pointer < stack + THREAD_SIZE
        && typed!(task, task_flags, u32) & PF_KTHREAD == 0
}

/// Fills in the current process if it is the sender.
#[inline(always)]
pub fn fill(record: &mut Record, stack_pointer: u64) {
    if !is_current(stack_pointer) {
        return;
    }
    // SAFETY: helpers without arguments.
    let (task, ids, owner) = unsafe {
        (
            bpf_get_current_task_btf() as u64,
            bpf_get_current_pid_tgid(),
            bpf_get_current_uid_gid(),
        )
    };
    record.pid = ids as u32;
    record.tgid = (ids >> 32) as u32;
    record.uid = owner as u32;
    let leader = typed!(task, task_group_leader, u64);
    let name = [
        typed!(leader, task_comm, u64),
        typed!(leader, task_comm, u64, 8),
    ];
    for (word, value) in name.into_iter().enumerate() {
        // SAFETY: the name is two words, at a multiple of 8.
        unsafe {
            core::ptr::write_volatile(record.comm.as_mut_ptr().cast::<u64>().add(word), value)
        };
    }
    record.flags |= FLAG_PROCESS;
}
