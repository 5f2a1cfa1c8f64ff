// Takes a picture that is dropped or pasted anywhere on the page, or chosen in a dialog, and posts it to `path`.
export default {
  props: { path: String, mostBytes: Number },
  template: `
    <label class="picture-input" :class="{ over, busy }">
      <input ref="file" type="file" accept="image/*" class="picture-input-file" aria-label="Choose a picture"
             @change="take($event.target.files[0])" />
      <span class="picture-input-title">{{ busy ? "Reading the picture…" : "Choose a picture" }}</span>
      <span class="picture-input-hint">or drop one anywhere, or paste it</span>
    </label>`,
  data() {
    return { over: 0, busy: 0 };
  },
  mounted() {
    this.listeners = {
      dragenter: (event) => this.enter(event, 1),
      dragleave: (event) => this.enter(event, -1),
      dragover: (event) => event.preventDefault(),
      drop: (event) => {
        event.preventDefault();
        this.over = 0;
        this.take(this.pictureIn(event.dataTransfer));
      },
      paste: (event) => {
        const picture = this.pictureIn(event.clipboardData);
        if (picture) this.take(picture);
      },
    };
    for (const [name, listener] of Object.entries(this.listeners)) window.addEventListener(name, listener);
  },
  unmounted() {
    for (const [name, listener] of Object.entries(this.listeners)) window.removeEventListener(name, listener);
  },
  methods: {
    enter(event, change) {
      event.preventDefault();
      this.over = Math.max(0, this.over + change);
    },
    pictureIn(data) {
      const files = [...(data?.files ?? [])];
      return files.find((file) => file.type.startsWith("image/")) ?? files[0];
    },
    async take(file) {
      if (!file) return;
      this.$refs.file.value = ""; // so that the same file can be chosen again
      if (file.size > this.mostBytes) {
        this.$emit("refused", `a picture may have ${Math.floor(this.mostBytes / 1048576)} MB: give a smaller file`);
        return;
      }
      this.busy += 1;
      try {
        const answer = await fetch(this.path, { method: "POST", body: file });
        if (!answer.ok) this.$emit("refused", await answer.text());
      } catch {
        this.$emit("refused", "the playground does not answer: is its command still running?");
      }
      this.busy -= 1;
    },
  },
};
