// What the page does in the browser itself. Whatever sets a control while someone works does it here and at once, or is
// waited for before a run takes the controls: a run never sees less than what was chosen before it was asked for.
const studio = (() => {
  const pause = () => new Promise((done) => setTimeout(done, 50));
  const find = (selector) => document.querySelector(selector);
  // A file is being uploaded, or a control is being set by the server.
  const arriving = () => Date.now() < loading || find("#studio .uploading, #ask .progress-text, #more .progress-text");
  const running = () => find("#status [data-testid=status-tracker]:not(.hide):not(:has(.error))");
  let loading = 0; // until when the editor, which does not show it, may be reading a file; one that fails never says so
  let clicks = 0;
  let stopping = false; // until the run has ended, so that the next one is not taken for it
  let halted = false; // the last run was stopped

  const given = (event) => {
    const files = (event.dataTransfer ?? event.clipboardData ?? event.target).files;
    if (files?.length && event.target.closest?.("#start-editor")) loading = Date.now() + 5000;
  };
  for (const way of ["change", "drop", "paste"]) document.addEventListener(way, given, true);

  const studio = {
    // Wait for what is on its way into a control: until twice nothing is seen, as an upload shows a moment after it was
    // asked for, and what the server makes of it a moment after it has ended.
    settled: async () => {
      for (let quiet = 0; quiet < 2; quiet = stopping || arriving() ? 0 : quiet + 1) await pause();
    },

    // Before a run: wait, unless another click comes meanwhile, and show where the result comes.
    painting: async (tab) => {
      const own = ++clicks;
      await studio.settled();
      if (own !== clicks) await new Promise(() => {});
      halted = false;
      return { __type__: "update", selected: tab };
    },

    loaded: () => {
      loading = 0;
    },

    stop: () => {
      clicks++;
      if (!stopping) stopping = halted = Boolean(running());
    },

    stopped: async () => {
      while (running()) await pause();
      stopping = false;
      return halted ? "Stopped." : undefined;
    },

    failed: () => (halted ? undefined : "It failed; the message says why."),

    // The seed that was drawn stays, to be used again; one that was typed is the user's.
    seed: (recipe, randomise, seed) => (randomise && recipe ? recipe.seed : seed),

    // The target blocks and their sliders for a preset, of a table of them.
    choose: (presets, mode) => presets[mode],

    // The sliders as target blocks, which is no preset.
    slide: (blocks, scales) => {
      const named = blocks.map((block, number) => (scales[number] === 1 ? block : `${block}=${scales[number]}`));
      const chosen = named.filter((_, number) => scales[number]);
      return [(chosen.length ? chosen : named).join(", "), null];
    },
  };
  return studio;
})();
